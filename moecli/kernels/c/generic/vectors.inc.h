/* Numbers of a type to floats and back; sums and norms over those of one token, the same on every instruction set. */
#ifndef MOECLI_VECTORS_H
#define MOECLI_VECTORS_H

#include "numbers.inc.h"

#define EACH_WIDE for (int lane = 0; lane < WIDE; lane++)

static size_t number_size(int32_t type) { return type == FP32 ? 4 : 2; }

INLINE float number(const void *numbers, int32_t type, size_t i) {
    if (type == FP32)
        return ((const float *)numbers)[i];
    uint16_t bits = ((const uint16_t *)numbers)[i];
    return type == BF16 ? from_bf16(bits) : from_fp16(bits);
}

INLINE void load_16(float *to, const void *numbers, const int32_t type, size_t i) {
    for (int lane = 0; type == FP16 && lane < WIDE; lane += LANES)
        store(to + lane, scales((const uint8_t *)numbers + 2 * (i + (size_t)lane)));
    for (int lane = 0; type != FP16 && lane < WIDE; lane++)
        to[lane] = number(numbers, type, i + (size_t)lane);
}

INLINE float dot_product(const float *a, const void *b, const int32_t type, size_t count) {
    float sums[WIDE] = {0};
    size_t i = 0;
    for (; i + WIDE <= count; i += WIDE) {
        float factors[WIDE];
        load_16(factors, b, type, i);
        EACH_WIDE
            sums[lane] = fmaf(a[i + lane], factors[lane], sums[lane]);
    }
    for (int lane = 0; i < count; i++, lane++)
        sums[lane] = fmaf(a[i], number(b, type, i), sums[lane]);
    return sum_of(sums);
}

/* to += factor * numbers */
INLINE void add_scaled(float *to, float factor, const void *numbers, const int32_t type, size_t count) {
    size_t i = 0;
    for (; i + WIDE <= count; i += WIDE) {
        float some[WIDE];
        load_16(some, numbers, type, i);
        EACH_WIDE
            to[i + lane] = fmaf(factor, some[lane], to[i + lane]);
    }
    for (; i < count; i++)
        to[i] = fmaf(factor, number(numbers, type, i), to[i]);
}

/* A call for each type, which is then known to the loops in it. */
#define OF_TYPE(type, call) ((type) == FP32 ? call(FP32) : (type) == BF16 ? call(BF16) : call(FP16))

static float dot_of(const float *a, const void *b, int32_t type, size_t count) {
#define DOT(type) dot_product(a, b, type, count)
    return OF_TYPE(type, DOT);
#undef DOT
}

static void add_to(float *to, float factor, const void *numbers, int32_t type, size_t count) {
#define ADD(type) add_scaled(to, factor, numbers, type, count)
    OF_TYPE(type, ADD);
#undef ADD
}

INLINE void load_typed(float *to, const void *numbers, const int32_t type, size_t count) {
    size_t i = 0;
    for (; i + WIDE <= count; i += WIDE)
        load_16(to + i, numbers, type, i);
    for (; i < count; i++)
        to[i] = number(numbers, type, i);
}

static void load_numbers(float *to, const void *numbers, int32_t type, size_t count) {
#define LOAD(type) load_typed(to, numbers, type, count)
    OF_TYPE(type, LOAD);
#undef LOAD
}

static void store_numbers(void *to, int32_t type, const float *numbers, size_t count) {
    if (type == FP32)
        memcpy(to, numbers, count * sizeof *numbers);
    else if (type == BF16)
        for (size_t i = 0; i < count; i++)
            ((uint16_t *)to)[i] = to_bf16(numbers[i]);
    else
        for (size_t i = 0; i < count; i++) {
            uint16_t other = isnan(numbers[i]) ? 0x7e00 : numbers[i] < 0 ? 0xfc00 : 0x7c00; /* too large for fp16 */
            ((uint16_t *)to)[i] = fabsf(numbers[i]) < 65520 ? to_fp16(numbers[i]) : other;
        }
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
    for (size_t i = 0; i < count; i += WIDE) {
        size_t some = minimum(WIDE, count - i);
        float each[WIDE];
        if (weights)
            load_numbers(each, (const char *)weights + i * number_size(type), type, some);
        for (size_t lane = 0; weights && kind == ZERO_CENTRED && lane < some; lane++)
            each[lane] += 1;
        for (size_t lane = 0; lane < some; lane++)
            numbers[i + lane] = weights ? numbers[i + lane] * factor * each[lane] : numbers[i + lane] * factor;
    }
}

#endif
