/* What both halves of a block do to one token: read and normalise it, multiply, add to it. */
#ifndef MOECLI_HALF_H
#define MOECLI_HALF_H

#include "layer.h"
#include "vectors.h"

static void begin_half(const struct half *half, float *normed) {
    load_numbers(normed, half->x, half->type, (size_t)half->width);
    normalise(half->norm, half->eps, half->before, half->type, normed, (size_t)half->width);
}

/* Adds `out` to the hidden state, and leaves it changed. */
static void end_half(const struct half *half, float *out) {
    size_t width = (size_t)half->width;
    if (half->after)
        normalise(half->norm, half->eps, half->after, half->type, out, width);
    for (size_t i = 0; i < width; i++)
        out[i] = number(half->x, half->type, i) + half->multiplier * out[i];
    store_numbers(half->x, half->type, out, width);
}

/* out [rows] = packed [rows, columns] times numbers, plus a bias if there is one */
static enum outcome multiply(const struct half *half, const void *packed, const void *bias, const float *numbers,
                             size_t columns, float *out, size_t rows) {
    struct linear call = {half->team, half->format, {numbers, FP32, 1, (int64_t)columns}, packed, (int64_t)rows, out};
    enum outcome outcome = linear(&call);
    if (bias)
        add_to(out, 1, bias, half->type, rows);
    return outcome;
}

#endif
