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
#define BUFFER_ROWS 8

typedef int8x16_t codes;
typedef int32x4_t ints;
typedef float32x4_t floats;
typedef uint8x16x4_t table; /* 16 floats, byte after byte */

static const int8_t q4_table[16] __attribute__((aligned(16))) = Q4_CODES;
static const int8_t q3_table[16] __attribute__((aligned(16))) = Q3_CODES;
static const int8_t mxfp4_table[16] __attribute__((aligned(16))) = MXFP4_CODES;
static const int8_t q4_0_table[16] __attribute__((aligned(16))) = Q4_0_CODES;
static const int8_t iq4_nl_table[16] __attribute__((aligned(16))) = IQ4_NL_CODES;
static const float normal[16] = NORMAL_FLOAT;
static const int8_t multiple[16] __attribute__((aligned(16))) = MULTIPLES;

INLINE ints q8_start(int32_t value) {
    (void)value;
    return vdupq_n_s32(0);
}

INLINE ints book_start(int32_t value) { return q8_start(value); }

INLINE ints q8_dot(ints sum, codes line, const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return vdotq_s32(sum, line, vreinterpretq_s8_s32(vdupq_n_s32(four)));
}

INLINE ints book_dot(ints sum, codes first, codes second, const int8_t *x) {
    return q8_dot(q8_dot(sum, first, x), second, x + 4);
}

INLINE codes load_codes(const uint8_t *bytes) { return vld1q_s8((const int8_t *)bytes); }

INLINE void store_codes(uint8_t *bytes, codes line) { vst1q_s8((int8_t *)bytes, line); }

INLINE codes q8_codes(const uint8_t *line) { return load_codes(line); }

INLINE void nibble_codes(const int8_t *codes_of, const int wide, const uint8_t *line, codes *low, codes *high) {
    (void)wide;
    int8x16_t table = vld1q_s8(codes_of);
    uint8x16_t both = vld1q_u8(line);
    *low = vqtbl1q_s8(table, vandq_u8(both, vdupq_n_u8(15)));
    *high = vqtbl1q_s8(table, vshrq_n_u8(both, 4));
}

/* Two bits of one line and one of another. */
INLINE codes q3_codes(const uint8_t *two, const uint8_t *one, const int place) {
    uint8x16_t low = vshlq_u8(vld1q_u8(two), vdupq_n_s8((int8_t)(-2 * (place & 3))));
    uint8x16_t high = vshlq_u8(vld1q_u8(one), vdupq_n_s8((int8_t)(2 - place)));
    return vqtbl1q_s8(vld1q_s8(q3_table), vbslq_u8(vdupq_n_u8(3), low, vandq_u8(high, vdupq_n_u8(4))));
}

INLINE floats scales(const uint8_t *line) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(line))); }

INLINE void four_each(int8x16_t bytes, floats *numbers) {
    int16x8_t halves[2] = {vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes))};
    for (int i = 0; i < 4; i++) {
        int16x4_t four = i % 2 ? vget_high_s16(halves[i / 2]) : vget_low_s16(halves[i / 2]);
        numbers[i] = vcvtq_f32_s32(vmovl_s16(four));
    }
}

INLINE void multiples(const uint8_t *bytes, floats *low, floats *high) {
    int8x16_t table = vld1q_s8(multiple);
    uint8x16_t both = vld1q_u8(bytes);
    four_each(vqtbl1q_s8(table, vandq_u8(both, vdupq_n_u8(15))), low);
    four_each(vqtbl1q_s8(table, vshrq_n_u8(both, 4)), high);
}

INLINE floats powers(const uint8_t *exponents) {
    uint32_t four;
    memcpy(&four, exponents, 4);
    uint32x4_t bits = vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
    return vreinterpretq_f32_u32(vshlq_n_u32(vaddq_u32(bits, vdupq_n_u32(POWER_BIAS)), 23));
}

INLINE floats to_floats(ints numbers) { return vcvtq_f32_s32(numbers); }

INLINE floats load(const float *numbers) { return vld1q_f32(numbers); }

INLINE void store(float *numbers, floats result) { vst1q_f32(numbers, result); }

INLINE floats add(floats total, ints sum, float activation_scale, floats scale) {
    return vfmaq_f32(total, vmulq_n_f32(vcvtq_f32_s32(sum), activation_scale), scale);
}

INLINE floats add_product(floats total, floats numbers, float factor) { return vfmaq_n_f32(total, numbers, factor); }

INLINE floats times(floats a, floats b) { return vmulq_f32(a, b); }

INLINE floats larger(floats a, floats b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }

INLINE floats fused(floats total, floats a, floats b) { return vfmaq_f32(total, a, b); }

INLINE float sum_lanes(const floats *sums) {
    floats four = vaddq_f32(vaddq_f32(sums[0], sums[2]), vaddq_f32(sums[1], sums[3]));
    float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

INLINE floats bf16_floats(const uint8_t *numbers) {
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(numbers)), 16));
}

INLINE floats int8_floats(const uint8_t *numbers) {
    int32_t four;
    memcpy(&four, numbers, 4);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8((uint32_t)four)))));
}

INLINE table nf4_table(float scale) {
    table values;
    for (int i = 0; i < 4; i++)
        values.val[i] = vreinterpretq_u8_f32(vmulq_n_f32(vld1q_f32(normal + 4 * i), scale));
    return values;
}

/* Lane by lane the byte of its nibble; 4 times the nibble is where its float begins. */
INLINE floats nf4_floats(table values, const uint8_t *nibbles) {
    static const int32_t shifts[4] = {-2, 2, -10, -6};
    uint16_t four;
    memcpy(&four, nibbles, 2);
    uint32x4_t index = vandq_u32(vshlq_u32(vdupq_n_u32(four), vld1q_s32(shifts)), vdupq_n_u32(60));
    index = vaddq_u32(vmulq_n_u32(index, 0x01010101), vdupq_n_u32(0x03020100));
    return vreinterpretq_f32_u8(vqtbl4q_u8(values, vreinterpretq_u8_u32(index)));
}

#include "../generic/isa.inc.h"
