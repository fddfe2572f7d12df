/* What both sublayers of a block do to a few tokens: read and normalise them, multiply, add to them. */
#ifndef MOECLI_SUBLAYER_H
#define MOECLI_SUBLAYER_H

#include "linear.inc.h"
#include "vectors.inc.h"

/* normed [tokens, hidden_size]; what is `kept` of the hidden states is that, and nothing of what it was made of. */
static void begin_sublayer(const struct sublayer *sublayer, float *normed) {
    size_t hidden_size = (size_t)sublayer->hidden_size, tokens = (size_t)sublayer->tokens;
    load_numbers(normed, sublayer->x, sublayer->type, tokens * hidden_size);
    for (float *token = normed; token < normed + tokens * hidden_size; token += hidden_size) {
        normalise(sublayer->norm, sublayer->eps, sublayer->before, sublayer->type, token, hidden_size);
        if (sublayer->before_bias)
            add_to(token, 1, sublayer->before_bias, sublayer->type, hidden_size);
    }
    if (sublayer->kept != 0)
        store_numbers(sublayer->x, sublayer->type, normed, tokens * hidden_size);
}

/* numbers [tokens, hidden_size] normed as the sublayer's are, with other weights; NULL: left as they are */
static void normalise_tokens(const struct sublayer *sublayer, const void *norm, float *numbers) {
    size_t hidden_size = (size_t)sublayer->hidden_size, count = (size_t)sublayer->tokens * hidden_size;
    for (float *token = numbers; norm && token < numbers + count; token += hidden_size)
        normalise(sublayer->norm, sublayer->eps, norm, sublayer->type, token, hidden_size);
}

/* Adds `out` [tokens, hidden_size] to the hidden states, and leaves it changed. */
static void end_sublayer(const struct sublayer *sublayer, float *out) {
    size_t hidden_size = (size_t)sublayer->hidden_size, count = (size_t)sublayer->tokens * hidden_size;
    float kept = sublayer->kept != 0 ? sublayer->kept : 1;
    normalise_tokens(sublayer, sublayer->after, out);
    for (size_t i = 0; i < count; i++)
        out[i] = (number(sublayer->x, sublayer->type, i) * kept + sublayer->multiplier * out[i]) * sublayer->scale;
    store_numbers(sublayer->x, sublayer->type, out, count);
}

/* out [tokens, rows] = numbers [tokens, columns] times a matrix [rows, columns] of a format, plus a bias if there is
   one */
static enum status multiply(const struct sublayer *sublayer, int32_t format, const void *matrix, const void *bias,
                            const float *numbers, size_t columns, float *out, size_t rows) {
    struct tokens tokens = {numbers, FP32, sublayer->tokens, (int64_t)columns};
    struct linear call = {sublayer->pool, format, tokens, matrix, (int64_t)rows, out};
    enum status status = linear(&call);
    for (size_t token = 0; bias && token < (size_t)sublayer->tokens; token++)
        add_to(out + token * rows, 1, bias, sublayer->type, rows);
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
