/* Sums and norms over the numbers of one token: 16 sums side by side, the same on every instruction set. */
#ifndef MOECLI_VECTORS_H
#define MOECLI_VECTORS_H

#include "numbers.inc.h"

#define WIDE 16
#define EACH_WIDE for (int lane = 0; lane < WIDE; lane++)

INLINE float number(const void *numbers, int32_t type, size_t i) {
    return type == FP32 ? ((const float *)numbers)[i] : from_bf16(((const uint16_t *)numbers)[i]);
}

INLINE void set_number(void *numbers, int32_t type, size_t i, float value) {
    if (type == FP32)
        ((float *)numbers)[i] = value;
    else
        ((uint16_t *)numbers)[i] = to_bf16(value);
}

INLINE float sum_of(const float *sums) {
    float eight[8], four[4];
    for (int lane = 0; lane < 8; lane++)
        eight[lane] = sums[lane] + sums[lane + 8];
    for (int lane = 0; lane < 4; lane++)
        four[lane] = eight[lane] + eight[lane + 4];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

INLINE float dot_product(const float *a, const void *b, const int32_t type, size_t count) {
    float sums[WIDE] = {0};
    size_t i = 0;
    for (; i + WIDE <= count; i += WIDE)
        EACH_WIDE
            sums[lane] = fmaf(a[i + lane], number(b, type, i + lane), sums[lane]);
    for (int lane = 0; i < count; i++, lane++)
        sums[lane] = fmaf(a[i], number(b, type, i), sums[lane]);
    return sum_of(sums);
}

/* to += factor * numbers */
INLINE void add_scaled(float *to, float factor, const void *numbers, const int32_t type, size_t count) {
    for (size_t i = 0; i < count; i++)
        to[i] = fmaf(factor, number(numbers, type, i), to[i]);
}

static float dot_of(const float *a, const void *b, int32_t type, size_t count) {
    return type == FP32 ? dot_product(a, b, FP32, count) : dot_product(a, b, BF16, count);
}

static void add_to(float *to, float factor, const void *numbers, int32_t type, size_t count) {
    if (type == FP32)
        add_scaled(to, factor, numbers, FP32, count);
    else
        add_scaled(to, factor, numbers, BF16, count);
}

static void load_numbers(float *to, const void *numbers, int32_t type, size_t count) {
    if (type == FP32)
        memcpy(to, numbers, count * sizeof *to);
    else
        for (size_t i = 0; i < count; i++)
            to[i] = from_bf16(((const uint16_t *)numbers)[i]);
}

static void store_numbers(void *to, int32_t type, const float *numbers, size_t count) {
    if (type == FP32)
        memcpy(to, numbers, count * sizeof *numbers);
    else
        for (size_t i = 0; i < count; i++)
            ((uint16_t *)to)[i] = to_bf16(numbers[i]);
}

/* In place, times `weights`, or as they are if that is NULL. */
static void normalise(int32_t kind, float eps, const void *weights, int32_t type, float *numbers, size_t count) {
    float sums[WIDE] = {0};
    if (kind == LAYER) {
        for (size_t i = 0; i + WIDE <= count; i += WIDE)
            EACH_WIDE
                sums[lane] += numbers[i + lane];
        for (size_t i = count / WIDE * WIDE, lane = 0; i < count; i++, lane++)
            sums[lane] += numbers[i];
        float mean = sum_of(sums) / (float)count;
        for (size_t i = 0; i < count; i++)
            numbers[i] -= mean;
    }
    float square = dot_product(numbers, numbers, FP32, count) / (float)count;
    float factor = 1 / sqrtf(square + eps);
    if (!weights)
        for (size_t i = 0; i < count; i++)
            numbers[i] *= factor;
    else if (type == FP32)
        for (size_t i = 0; i < count; i++)
            numbers[i] = numbers[i] * factor * ((const float *)weights)[i];
    else
        for (size_t i = 0; i < count; i++)
            numbers[i] = numbers[i] * factor * from_bf16(((const uint16_t *)weights)[i]);
}

#endif
