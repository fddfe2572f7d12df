/* x86-64 with AVX2, 8 rows in a register: signed codes of q8; with AVX-VNNI unsigned ones, one instruction a line. */
#include "../generic/numbers.inc.h"

#if !defined __AVX2__
#error "this instruction set needs AVX2"
#endif

#include <immintrin.h>

#define LANES 8
#define PANELS 1
#define TOKENS 4
#define TILE_ROWS 6
#define TILE_VECTORS 2
#define BUFFER_ROWS 4

typedef __m256i codes; /* of a codebook plus 32; of q8 with AVX-VNNI plus 128 */
typedef __m256i ints;
typedef __m256 floats;

typedef struct {
    floats low, high;
} table;

static const int8_t q4_table[16] __attribute__((aligned(16))) = Q4_CODES;
static const int8_t q3_table[16] __attribute__((aligned(16))) = Q3_CODES;
static const int8_t mxfp4_table[16] __attribute__((aligned(16))) = MXFP4_CODES;
static const int8_t q4_0_table[16] __attribute__((aligned(16))) = Q4_0_CODES;
static const int8_t iq4_nl_table[16] __attribute__((aligned(16))) = IQ4_NL_CODES;
static const float normal[16] __attribute__((aligned(32))) = NORMAL_FLOAT;
static const int8_t multiple[16] __attribute__((aligned(16))) = MULTIPLES;

INLINE __m256i four_activations(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
}

INLINE ints book_start(int32_t value) { return _mm256_set1_epi32(value); }

#if defined __AVXVNNI__
#define ISA avxvnni

#define WIDE_OFFSET 128

INLINE codes shift_up(codes line) { return _mm256_xor_si256(line, _mm256_set1_epi8((char)128)); }

INLINE ints q8_start(int32_t value) { return _mm256_set1_epi32(value); }

INLINE ints q8_dot(ints sum, codes line, const int8_t *x) {
    return _mm256_dpbusd_avx_epi32(sum, line, four_activations(x));
}

INLINE ints book_dot(ints sum, codes first, codes second, const int8_t *x) {
    return q8_dot(q8_dot(sum, first, x), second, x + 4);
}
#else
#define ISA avx2

#define WIDE_OFFSET 0

INLINE codes shift_up(codes line) { return line; }

INLINE ints q8_start(int32_t value) {
    (void)value;
    return _mm256_setzero_si256();
}

/* |code| times the activation with the code's sign. Two such products are at most 32258: they fit 16 bits. */
INLINE ints q8_dot(ints sum, codes line, const int8_t *x) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(line), _mm256_sign_epi8(four_activations(x), line));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* Codes are 1 to 60: four products are at most 30480. */
INLINE ints book_dot(ints sum, codes first, codes second, const int8_t *x) {
    __m256i fours = _mm256_add_epi16(_mm256_maddubs_epi16(first, four_activations(x)),
                                     _mm256_maddubs_epi16(second, four_activations(x + 4)));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(fours, _mm256_set1_epi16(1)));
}
#endif

INLINE codes load_codes(const uint8_t *bytes) { return _mm256_loadu_si256((const __m256i *)bytes); }

INLINE void store_codes(uint8_t *bytes, codes line) { _mm256_storeu_si256((__m256i *)bytes, line); }

INLINE codes q8_codes(const uint8_t *line) { return shift_up(load_codes(line)); }

INLINE __m256i book(const int8_t *table, const int offset) {
    __m256i codes = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)table));
    return _mm256_add_epi8(codes, _mm256_set1_epi8((char)offset));
}

INLINE void nibble_codes(const int8_t *codes_of, const int wide, const uint8_t *line, codes *low, codes *high) {
    __m256i table = book(codes_of, wide ? WIDE_OFFSET : OFFSET), mask = _mm256_set1_epi8(15), both = load_codes(line);
    *low = _mm256_shuffle_epi8(table, _mm256_and_si256(both, mask));
    *high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(both, 4), mask));
}

/* Two bits of one line and one of another. */
INLINE codes q3_codes(const uint8_t *two, const uint8_t *one, const int place) {
    __m256i low = _mm256_srli_epi16(load_codes(two), 2 * (place & 3)), high = load_codes(one);
    high = place < 2 ? _mm256_slli_epi16(high, 2 - place) : _mm256_srli_epi16(high, place - 2);
    low = _mm256_and_si256(low, _mm256_set1_epi8(3));
    high = _mm256_and_si256(high, _mm256_set1_epi8(4));
    return _mm256_shuffle_epi8(book(q3_table, OFFSET), _mm256_or_si256(low, high));
}

INLINE floats scales(const uint8_t *line) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)line)); }

/* Bytes of a table, by the low nibbles and by the high ones. */
INLINE void multiples(const uint8_t *bytes, floats *low, floats *high) {
    __m128i table = _mm_load_si128((const __m128i *)multiple), mask = _mm_set1_epi8(15);
    __m128i both = _mm_loadu_si128((const __m128i *)bytes);
    __m128i lows = _mm_shuffle_epi8(table, _mm_and_si128(both, mask));
    __m128i highs = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(both, 4), mask));
    low[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(lows));
    low[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(lows, lows)));
    high[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(highs));
    high[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(highs, highs)));
}

INLINE floats powers(const uint8_t *exponents) {
    __m256i bits = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)exponents));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(POWER_BIAS)), 23));
}

INLINE floats to_floats(ints numbers) { return _mm256_cvtepi32_ps(numbers); }

INLINE floats load(const float *numbers) { return _mm256_loadu_ps(numbers); }

INLINE void store(float *numbers, floats result) { _mm256_storeu_ps(numbers, result); }

INLINE floats add(floats total, ints sum, float activation_scale, floats scale) {
    __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(activation_scale));
    return _mm256_fmadd_ps(scaled, scale, total);
}

INLINE floats add_product(floats total, floats numbers, float factor) {
    return _mm256_fmadd_ps(numbers, _mm256_set1_ps(factor), total);
}

INLINE floats times(floats a, floats b) { return _mm256_mul_ps(a, b); }

INLINE floats larger(floats a, floats b) { return _mm256_max_ps(a, b); }

INLINE floats fused(floats total, floats a, floats b) { return _mm256_fmadd_ps(a, b, total); }

INLINE float sum_lanes(const floats *sums) {
    __m256 eight = _mm256_add_ps(sums[0], sums[1]);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE floats bf16_floats(const uint8_t *numbers) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)numbers));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

INLINE floats int8_floats(const uint8_t *numbers) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)numbers)));
}

INLINE table nf4_table(float scale) {
    __m256 factor = _mm256_set1_ps(scale);
    return (table){_mm256_mul_ps(_mm256_load_ps(normal), factor), _mm256_mul_ps(_mm256_load_ps(normal + 8), factor)};
}

/* Each lane's nibble is shifted down; a permutation heeds its 3 lowest bits, and the fourth chooses between two. */
INLINE floats nf4_floats(table values, const uint8_t *nibbles) {
    int32_t eight;
    memcpy(&eight, nibbles, 4);
    __m256i index = _mm256_srlv_epi32(_mm256_set1_epi32(eight), _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24));
    __m256 low = _mm256_permutevar8x32_ps(values.low, index), high = _mm256_permutevar8x32_ps(values.high, index);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}

#include "../generic/isa.inc.h"
