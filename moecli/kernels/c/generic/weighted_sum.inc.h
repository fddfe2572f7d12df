/* A layer's experts for the tokens of a prompt: each for those that take it, and the weighted sum of what they make. */
#ifndef MOECLI_WEIGHTED_SUM_H
#define MOECLI_WEIGHTED_SUM_H

#include "linear.inc.h"

/* Rounded twice, as whoever multiplies first and adds then. */
static void add_weighted(float *to, float weight, const float *numbers, size_t count) {
    for (size_t i = 0; i < count; i++)
        to[i] += weight * numbers[i];
}

static size_t most_rows(const struct weighted_sum *call) {
    size_t most = 0;
    for (size_t expert = 0; expert < (size_t)call->each.experts; expert++)
        most = (size_t)call->counts[expert] > most ? (size_t)call->counts[expert] : most;
    return minimum(most, (size_t)call->at_once);
}

static enum status weighted_sum(const struct weighted_sum *call) {
    struct feed_forward one = call->each;
    size_t hidden_size = (size_t)one.input.columns, row_bytes = hidden_size * number_size(one.input.type);
    size_t most = most_rows(call);
    float *outputs = allocate(most * (hidden_size * sizeof *outputs + row_bytes));
    if (!outputs)
        return NO_MEMORY;
    char *gathered = (char *)(outputs + most * hidden_size);
    const int64_t *rows = call->rows;
    const float *weights = call->weights;
    enum status status = DONE;
    one.experts = 1, one.input.data = gathered, one.output = outputs;
    for (size_t expert = 0; expert < (size_t)call->each.experts; expert++, one.matrices += 3)
        for (size_t left = (size_t)call->counts[expert]; left && status == DONE;) {
            size_t some = minimum(left, most);
            for (size_t i = 0; i < some; i++)
                memcpy(gathered + i * row_bytes, (const char *)call->each.input.data + (size_t)rows[i] * row_bytes,
                       row_bytes);
            one.input.count = (int64_t)some;
            status = feed_forward(&one);
            for (size_t i = 0; i < some && status == DONE; i++)
                add_weighted(call->sums + (size_t)rows[i] * hidden_size, weights[i], outputs + i * hidden_size,
                             hidden_size);
            rows += some, weights += some, left -= some;
        }
    free(outputs);
    return status;
}

#endif
