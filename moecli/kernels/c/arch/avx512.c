/* x86-64 with AVX-512 VNNI: 16 rows in a register, unsigned codes. */
#include "../generic/numbers.inc.h"

#if !defined __AVX512VNNI__
#error "this instruction set needs AVX-512 VNNI"
#endif

#include <immintrin.h>

#define ISA avx512
#define LANES 16
#define PANELS 2
#define TOKENS 6
#define TILE_ROWS 8
#define TILE_VECTORS 2
#define BUFFER_ROWS 8

typedef __m512i codes; /* of q8 plus 128, of a codebook plus 32 */
typedef __m512i ints;
typedef __m512 floats;
typedef __m512 table;

static const int8_t q4_table[16] __attribute__((aligned(16))) = Q4_CODES;
static const int8_t q3_table[16] __attribute__((aligned(16))) = Q3_CODES;
static const int8_t mxfp4_table[16] __attribute__((aligned(16))) = MXFP4_CODES;
static const int8_t q4_0_table[16] __attribute__((aligned(16))) = Q4_0_CODES;
static const int8_t iq4_nl_table[16] __attribute__((aligned(16))) = IQ4_NL_CODES;
static const float normal[16] __attribute__((aligned(64))) = NORMAL_FLOAT;
static const int8_t multiple[16] __attribute__((aligned(16))) = MULTIPLES;

INLINE ints q8_start(int32_t value) { return _mm512_set1_epi32(value); }

INLINE ints book_start(int32_t value) { return _mm512_set1_epi32(value); }

INLINE ints q8_dot(ints sum, codes line, const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm512_dpbusd_epi32(sum, line, _mm512_set1_epi32(four));
}

INLINE ints book_dot(ints sum, codes first, codes second, const int8_t *x) {
    return q8_dot(q8_dot(sum, first, x), second, x + 4);
}

INLINE codes q8_codes(const uint8_t *line) {
    return _mm512_xor_si512(_mm512_loadu_si512(line), _mm512_set1_epi8((char)128));
}

INLINE __m512i book(const int8_t *table, const int offset) {
    __m512i codes = _mm512_broadcast_i32x4(_mm_load_si128((const __m128i *)table));
    return _mm512_add_epi8(codes, _mm512_set1_epi8((char)offset));
}

INLINE void nibble_codes(const int8_t *codes_of, const int wide, const uint8_t *line, codes *low, codes *high) {
    __m512i table = book(codes_of, wide ? 128 : OFFSET), mask = _mm512_set1_epi8(15), both = _mm512_loadu_si512(line);
    *low = _mm512_shuffle_epi8(table, _mm512_and_si512(both, mask));
    *high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(both, 4), mask));
}

/* Two bits of one line and one of another: where the third operand is set the first, else the second. */
INLINE codes q3_codes(const uint8_t *two, const uint8_t *one, const int place) {
    __m512i low = _mm512_srli_epi16(_mm512_loadu_si512(two), 2 * (place & 3)), high = _mm512_loadu_si512(one);
    high = place < 2 ? _mm512_slli_epi16(high, 2 - place) : _mm512_srli_epi16(high, place - 2);
    __m512i both = _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi8(3), 0xe4);
    return _mm512_shuffle_epi8(book(q3_table, OFFSET), _mm512_and_si512(both, _mm512_set1_epi8(7)));
}

INLINE codes load_codes(const uint8_t *bytes) { return _mm512_loadu_si512(bytes); }

INLINE void store_codes(uint8_t *bytes, codes line) { _mm512_storeu_si512(bytes, line); }

INLINE floats scales(const uint8_t *line) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)line)); }

/* A permutation heeds the 4 lowest bits of each lane. */
INLINE void multiples(const uint8_t *bytes, floats *low, floats *high) {
    __m512 table = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *)multiple)));
    __m512i nibbles = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)bytes));
    *low = _mm512_permutexvar_ps(nibbles, table);
    *high = _mm512_permutexvar_ps(_mm512_srli_epi32(nibbles, 4), table);
}

INLINE floats powers(const uint8_t *exponents) {
    __m512i bits = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)exponents));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(POWER_BIAS)), 23));
}

INLINE floats to_floats(ints numbers) { return _mm512_cvtepi32_ps(numbers); }

INLINE floats load(const float *numbers) { return _mm512_loadu_ps(numbers); }

INLINE void store(float *numbers, floats result) { _mm512_storeu_ps(numbers, result); }

INLINE floats add(floats total, ints sum, float activation_scale, floats scale) {
    __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(activation_scale));
    return _mm512_fmadd_ps(scaled, scale, total);
}

INLINE floats add_product(floats total, floats numbers, float factor) {
    return _mm512_fmadd_ps(numbers, _mm512_set1_ps(factor), total);
}

INLINE floats times(floats a, floats b) { return _mm512_mul_ps(a, b); }

INLINE floats larger(floats a, floats b) { return _mm512_max_ps(a, b); }

INLINE floats fused(floats total, floats a, floats b) { return _mm512_fmadd_ps(a, b, total); }

INLINE float sum_lanes(const floats *sums) {
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(*sums), _mm512_extractf32x8_ps(*sums, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE floats bf16_floats(const uint8_t *numbers) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)numbers));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

INLINE floats int8_floats(const uint8_t *numbers) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)numbers)));
}

INLINE table nf4_table(float scale) { return _mm512_mul_ps(_mm512_load_ps(normal), _mm512_set1_ps(scale)); }

/* Each lane's nibble is shifted down; a permutation heeds its 4 lowest bits alone. */
INLINE floats nf4_floats(table values, const uint8_t *nibbles) {
    int32_t first, second;
    memcpy(&first, nibbles, 4);
    memcpy(&second, nibbles + 4, 4);
    __m512i shifts = _mm512_broadcast_i32x8(_mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24));
    __m512i both = _mm512_mask_set1_epi32(_mm512_set1_epi32(first), 0xff00, second);
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(both, shifts), values);
}

#include "../generic/isa.inc.h"
