/* Numbers of 16 bits, sums of 16 numbers, and int8 activations: a float scale for each 32. */
#ifndef MOECLI_NUMBERS_H
#define MOECLI_NUMBERS_H

#include "thread_pool.inc.h"

#include <math.h>
#include <string.h>

INLINE uint32_t bits_of(float number) {
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

INLINE float from_bits(uint32_t bits) {
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

INLINE float from_bf16(uint16_t bits) { return from_bits((uint32_t)bits << 16); }

INLINE uint16_t to_bf16(float number) {
    uint32_t bits = bits_of(number);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE float from_fp16(uint16_t bits) {
    uint32_t magnitude = bits & 0x7fffu, sign = (uint32_t)(bits & 0x8000) << 16;
    uint32_t exponent = (magnitude < 0x7c00 ? 112u : 224u) << 23; /* the second: infinite or not a number */
    float number = magnitude < 0x400 ? (float)magnitude * 0x1p-24f : from_bits((magnitude << 13) + exponent);
    return from_bits(bits_of(number) | sign);
}

/* To nearest, ties to even, for a number that fp16 can hold. */
INLINE uint16_t to_fp16(float number) {
    uint32_t bits = bits_of(number), sign = bits >> 16 & 0x8000;
    float magnitude = from_bits(bits & 0x7fffffff);
    if (magnitude < 0x1p-14f) /* a sum whose last place is that of fp16's subnormal numbers */
        return (uint16_t)(sign | (bits_of(magnitude + 0.5f) - bits_of(0.5f)));
    bits &= 0x7fffffff;
    return (uint16_t)(sign | ((bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13));
}

#define WIDE 16 /* sums side by side */

static const float zeros[WIDE];
static const float ones[WIDE] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

INLINE float sum_of(const float *sums) {
    float eight[8], four[4];
    for (int lane = 0; lane < 8; lane++)
        eight[lane] = sums[lane] + sums[lane + 8];
    for (int lane = 0; lane < 4; lane++)
        four[lane] = eight[lane] + eight[lane + 4];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

/* Added to a number below 2**22 it leaves the nearest whole one, ties to even, in the lowest bits. */
#define ROUND_MAGIC 0x1.8p23f

#define GROUP 32       /* columns that share the scale of an activation */
#define HALF 16        /* columns of q4 that share a multiple of their scale */
#define OFFSET 32      /* added to q4's codes where the instruction set wants them unsigned; to q8's 4 times as much */
#define GROUP_BYTES 44 /* bytes of such a group: 32 codes, their scale / 128, -OFFSET times the sum of each half */
#define EPS 1e-30f
#define POWER_BIAS 6 /* an exponent e stands for 2^(e - 128); times 128 that is a float whose own is e + 6 */

/* Activations of a few tokens, side by side, group after group:
   [group][token][32 codes], [group][token] scale, [group][half][token] start. */
static void quantise(const float *numbers, uint8_t *group, size_t tokens, size_t token) {
    int8_t *codes = (int8_t *)group + token * GROUP;
    uint32_t largest = 0;
    for (int i = 0; i < GROUP; i++) {
        uint32_t magnitude = bits_of(numbers[i]) & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
    }
    float absmax = from_bits(largest), scale = absmax / 127 / 128, inverse = 127 / absmax;
    int32_t sums[GROUP / HALF] = {0};
    if (absmax >= EPS && largest < 0x7f800000) {
        for (int half = 0; half < GROUP / HALF; half++) {
            int32_t sum = 0;
            for (int i = half * HALF; i < (half + 1) * HALF; i++) {
                codes[i] = (int8_t)bits_of(numbers[i] * inverse + ROUND_MAGIC);
                sum += codes[i];
            }
            sums[half] = -OFFSET * sum;
        }
    } else {
        memset(codes, 0, GROUP);
        scale = absmax < EPS ? 0 : NAN; /* what is not finite stays visible */
    }
    memcpy(group + tokens * GROUP + token * 4, &scale, 4);
    for (size_t half = 0; half < GROUP / HALF; half++)
        memcpy(group + tokens * (GROUP + 4) + (half * tokens + token) * 4, &sums[half], 4);
}

#endif
