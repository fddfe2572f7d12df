/* 64-bit Arm with the dot product instructions: 4 rows in a register, signed codes. */
#include "../generic/numbers.inc.h"

#if !defined __ARM_FEATURE_DOTPROD || !defined __aarch64__ || defined __ARM_BIG_ENDIAN
#error "this instruction set needs 64-bit Arm with dot products"
#endif

#include <arm_neon.h>

#define ISA neon
#define LANES 4
#define PANELS 1
#define TOKENS 4
#define TILE_ROWS 6
#define TILE_VECTORS 4

typedef int8x16_t codes;
typedef int32x4_t ints;
typedef float32x4_t floats;

static const int8_t codebook[16] = CODEBOOK;

INLINE ints start(int32_t value) {
    (void)value;
    return vdupq_n_s32(0);
}

INLINE ints dot(ints sum, codes line, const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return vdotq_s32(sum, line, vreinterpretq_s8_s32(vdupq_n_s32(four)));
}

INLINE codes load_codes(const uint8_t *bytes) { return vld1q_s8((const int8_t *)bytes); }

INLINE void store_codes(uint8_t *bytes, codes line) { vst1q_s8((int8_t *)bytes, line); }

INLINE codes q8_codes(const uint8_t *line) { return load_codes(line); }

INLINE void q4_codes(const uint8_t *line, codes *low, codes *high) {
    int8x16_t table = vld1q_s8(codebook);
    uint8x16_t both = vld1q_u8(line);
    *low = vqtbl1q_s8(table, vandq_u8(both, vdupq_n_u8(15)));
    *high = vqtbl1q_s8(table, vshrq_n_u8(both, 4));
}

INLINE floats scales(const uint8_t *line) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(line))); }

INLINE floats load(const float *numbers) { return vld1q_f32(numbers); }

INLINE void store(float *numbers, floats result) { vst1q_f32(numbers, result); }

INLINE floats add(floats total, ints sum, float activation_scale, floats scale) {
    return vfmaq_f32(total, vmulq_n_f32(vcvtq_f32_s32(sum), activation_scale), scale);
}

INLINE floats add_product(floats total, floats numbers, float factor) { return vfmaq_n_f32(total, numbers, factor); }

INLINE floats times(floats a, floats b) { return vmulq_f32(a, b); }

INLINE floats larger(floats a, floats b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }

#include "../generic/isa.inc.h"
