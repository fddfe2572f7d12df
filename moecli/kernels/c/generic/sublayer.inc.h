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

/* Rows of a plain matrix times one token, 16 rows a task. */
struct rows_job {
    const struct thread_pool *pool;
    const void *weights;
    int32_t type;
    const float *numbers;
    float *out;
    size_t rows, columns, workers;
    struct tasks tasks;
};

static void multiply_rows(void *argument) {
    struct rows_job *job = argument;
    size_t worker = __atomic_fetch_add(&job->workers, 1, __ATOMIC_RELAXED), task;
    size_t bytes = job->columns * (job->type == FP32 ? 4 : 2);
    while (next_task(&job->tasks, job->pool, worker, &task))
        for (size_t row = task * WIDE; row < minimum((task + 1) * WIDE, job->rows); row++)
            job->out[row] = dot_of(job->numbers, (const char *)job->weights + row * bytes, job->type, job->columns);
}

/* out [rows] = weights [rows, columns], numbers of a type, times numbers */
static void multiply_plain(const struct thread_pool *pool, const void *weights, int32_t type, const float *numbers,
                           size_t columns, float *out, size_t rows) {
    struct thread_pool some = limit_threads(pool, rows * columns * (type == FP32 ? 4 : 2));
    struct rows_job job = {&some, weights, type, numbers, out, rows, columns, 0, {.count = ceil_div(rows, WIDE)}};
    run(&some, multiply_rows, &job);
}

/* The cosines and sines of a place: angles [2, rotary_dim]. */
static void load_angles(const struct sublayer *sublayer, const struct place *place, size_t rotary_dim, float *angles) {
    size_t row = (size_t)place->position * rotary_dim * (sublayer->type == FP32 ? 4 : 2);
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
