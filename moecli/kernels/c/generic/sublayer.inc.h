/* What both sublayers of a block do to one token: read and normalise it, multiply, add to it. */
#ifndef MOECLI_SUBLAYER_H
#define MOECLI_SUBLAYER_H

#include "linear.inc.h"
#include "vectors.inc.h"

static void begin_sublayer(const struct sublayer *sublayer, float *normed) {
    load_numbers(normed, sublayer->x, sublayer->type, (size_t)sublayer->hidden_size);
    normalise(sublayer->norm, sublayer->eps, sublayer->before, sublayer->type, normed, (size_t)sublayer->hidden_size);
}

/* Adds `out` to the hidden state, and leaves it changed. */
static void end_sublayer(const struct sublayer *sublayer, float *out) {
    size_t hidden_size = (size_t)sublayer->hidden_size;
    if (sublayer->after)
        normalise(sublayer->norm, sublayer->eps, sublayer->after, sublayer->type, out, hidden_size);
    for (size_t i = 0; i < hidden_size; i++)
        out[i] = number(sublayer->x, sublayer->type, i) + sublayer->multiplier * out[i];
    store_numbers(sublayer->x, sublayer->type, out, hidden_size);
}

/* out [rows] = a matrix [rows, columns] of a format times numbers, plus a bias if there is one */
static enum status multiply(const struct sublayer *sublayer, int32_t format, const void *matrix, const void *bias,
                            const float *numbers, size_t columns, float *out, size_t rows) {
    struct tokens token = {numbers, FP32, 1, (int64_t)columns};
    struct linear call = {sublayer->pool, format, token, matrix, (int64_t)rows, out};
    enum status status = linear(&call);
    if (bias)
        add_to(out, 1, bias, sublayer->type, rows);
    return status;
}

/* The cosines and sines of a place: angles [2, rotary_dim]. */
static void load_angles(const struct sublayer *sublayer, const struct place *place, size_t rotary_dim, float *angles) {
    size_t row = (size_t)place->position * rotary_dim * number_size(sublayer->type);
    load_numbers(angles, (const char *)place->cosines + row, sublayer->type, rotary_dim);
    load_numbers(angles + rotary_dim, (const char *)place->sines + row, sublayer->type, rotary_dim);
}

/* Pairs of a head's first numbers, neighbours or half of them apart. */
static void rotate(int32_t interleaved, float *restrict head, const float *restrict angles, size_t rotary_dim) {
    size_t half = rotary_dim / 2;
    const float *restrict cosines = angles, *restrict sines = angles + rotary_dim;
    float *restrict second = head + half;
    if (interleaved)
        for (size_t i = 0; i < rotary_dim; i += 2) {
            float a = head[i], b = head[i + 1];
            head[i] = fmaf(b, sines[i], a * cosines[i]);
            head[i + 1] = fmaf(a, sines[i + 1], b * cosines[i + 1]);
        }
    else
        for (size_t i = 0; i < half; i++) {
            float a = head[i], b = second[i];
            head[i] = fmaf(b, sines[i], a * cosines[i]);
            second[i] = fmaf(a, sines[half + i], b * cosines[half + i]);
        }
}

#endif
