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

/* out [rows] = packed [rows, columns] times numbers, plus a bias if there is one */
static enum status multiply(const struct sublayer *sublayer, const void *packed, const void *bias, const float *numbers,
                            size_t columns, float *out, size_t rows) {
    struct tokens token = {numbers, FP32, 1, (int64_t)columns};
    struct linear call = {sublayer->pool, sublayer->format, token, packed, (int64_t)rows, out};
    enum status status = linear(&call);
    if (bias)
        add_to(out, 1, bias, sublayer->type, rows);
    return status;
}

#endif
