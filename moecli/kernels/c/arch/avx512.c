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

typedef __m512i codes; /* plus 128 */
typedef __m512i ints;
typedef __m512 floats;
typedef __m512 table;

static const int8_t codebook[16] __attribute__((aligned(16))) = CODEBOOK;
static const float normal[16] __attribute__((aligned(64))) = NORMAL_FLOAT;

INLINE ints start(int32_t value) { return _mm512_set1_epi32(value); }

INLINE ints dot(ints sum, codes line, const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm512_dpbusd_epi32(sum, line, _mm512_set1_epi32(four));
}

INLINE codes q8_codes(const uint8_t *line) {
    return _mm512_xor_si512(_mm512_loadu_si512(line), _mm512_set1_epi8((char)128));
}

INLINE void q4_codes(const uint8_t *line, codes *low, codes *high) {
    __m512i table = _mm512_broadcast_i32x4(_mm_load_si128((const __m128i *)codebook));
    __m512i mask = _mm512_set1_epi8(15), both = _mm512_loadu_si512(line);
    table = _mm512_xor_si512(table, _mm512_set1_epi8((char)128));
    *low = _mm512_shuffle_epi8(table, _mm512_and_si512(both, mask));
    *high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(both, 4), mask));
}

INLINE codes load_codes(const uint8_t *bytes) { return _mm512_loadu_si512(bytes); }

INLINE void store_codes(uint8_t *bytes, codes line) { _mm512_storeu_si512(bytes, line); }

INLINE floats scales(const uint8_t *line) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)line)); }

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

#define VECTOR_SEARCH
#include "../generic/codebook.inc.h"

/* 32 cells each, as 16-bit numbers; the lower half of the group first. */
INLINE void cells_of(const float *weights, float inverse, __m512i cells[2]) {
    __m512 middle = _mm512_set1_ps(CELLS / 2), factor = _mm512_set1_ps(inverse), last = _mm512_set1_ps(CELLS - 1);
    __m256i parts[4];
    for (int i = 0; i < 4; i++) {
        __m512 cell = _mm512_add_ps(_mm512_mul_ps(_mm512_loadu_ps(weights + 16 * i), factor), middle);
        cell = _mm512_min_ps(_mm512_max_ps(cell, _mm512_setzero_ps()), last);
        parts[i] = _mm512_cvtepi32_epi16(_mm512_cvttps_epi32(cell));
    }
    for (int i = 0; i < 2; i++)
        cells[i] = _mm512_inserti64x4(_mm512_castsi256_si512(parts[2 * i]), parts[2 * i + 1], 1);
}

INLINE __m512i nearest_codes(const struct search *search, __m512i cells) {
    __m512i step = _mm512_permutex2var_epi16(_mm512_loadu_si512(search->steps), _mm512_srli_epi16(cells, 4),
                                             _mm512_loadu_si512(search->steps + 32));
    return _mm512_srli_epi16(_mm512_add_epi16(cells, step), 9);
}

INLINE int32_t q4_error(const struct search *search, const float *weights, float inverse) {
    __m512i cells[2], sum = _mm512_setzero_si512();
    __m512i edges = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)search->edges));
    cells_of(weights, inverse, cells);
    for (int i = 0; i < 2; i++) {
        __m512i edge = _mm512_permutexvar_epi16(nearest_codes(search, cells[i]), edges);
        __m512i distance = _mm512_sub_epi16(_mm512_add_epi16(cells[i], cells[i]), edge);
        sum = _mm512_dpwssd_epi32(sum, distance, distance);
    }
    return _mm512_reduce_add_epi32(sum);
}

INLINE void q4_nibbles(const struct search *search, const float *weights, float inverse, uint8_t *nibbles) {
    __m512i cells[2];
    cells_of(weights, inverse, cells);
    for (int i = 0; i < 2; i++)
        _mm256_storeu_si256((__m256i *)(nibbles + 32 * i), _mm512_cvtepi16_epi8(nearest_codes(search, cells[i])));
}

#include "../generic/isa.inc.h"
