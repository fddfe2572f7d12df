/* x86-64 with AVX2, 8 rows in a register: signed codes; with AVX-VNNI unsigned ones, one instruction a line. */
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

typedef __m256i codes; /* with AVX-VNNI plus 128 */
typedef __m256i ints;
typedef __m256 floats;

typedef struct {
    floats low, high;
} table;

static const int8_t codebook[16] __attribute__((aligned(16))) = CODEBOOK;
static const float normal[16] __attribute__((aligned(32))) = NORMAL_FLOAT;

INLINE __m256i four_activations(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
}

#if defined __AVXVNNI__
#define ISA avxvnni

INLINE codes shift_up(codes line) { return _mm256_xor_si256(line, _mm256_set1_epi8((char)128)); }

INLINE ints start(int32_t value) { return _mm256_set1_epi32(value); }

INLINE ints dot(ints sum, codes line, const int8_t *x) {
    return _mm256_dpbusd_avx_epi32(sum, line, four_activations(x));
}
#else
#define ISA avx2

INLINE codes shift_up(codes line) { return line; }

INLINE ints start(int32_t value) {
    (void)value;
    return _mm256_setzero_si256();
}

/* |code| times the activation with the code's sign. Two such products are at most 32258: they fit 16 bits. */
INLINE ints dot(ints sum, codes line, const int8_t *x) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(line), _mm256_sign_epi8(four_activations(x), line));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

INLINE codes load_codes(const uint8_t *bytes) { return _mm256_loadu_si256((const __m256i *)bytes); }

INLINE void store_codes(uint8_t *bytes, codes line) { _mm256_storeu_si256((__m256i *)bytes, line); }

INLINE codes q8_codes(const uint8_t *line) { return shift_up(load_codes(line)); }

INLINE void q4_codes(const uint8_t *line, codes *low, codes *high) {
    __m256i table = shift_up(_mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)codebook)));
    __m256i mask = _mm256_set1_epi8(15), both = load_codes(line);
    *low = _mm256_shuffle_epi8(table, _mm256_and_si256(both, mask));
    *high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(both, 4), mask));
}

INLINE floats scales(const uint8_t *line) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)line)); }

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
