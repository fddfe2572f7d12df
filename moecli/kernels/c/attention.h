/* Attention of one token, from its hidden state and back to it. */
#ifndef MOECLI_ATTENTION_H
#define MOECLI_ATTENTION_H

#include "half.h"

#define KEYS 256 /* of a unit of work */

/* A unit is a block of keys for all heads that share them. It leaves, for each head, the largest score, the sum of
   exp(score - largest), and the values so weighted. */
struct attending {
    const struct attention *call;
    const struct team *team;
    const float *queries;
    float *parts; /* [kv_heads, blocks, heads / kv_heads, head_dim + 2] */
    size_t seen, blocks, workers;
    struct units units;
};

static size_t part_size(const struct attention *call) { return (size_t)call->head_dim + 2; }

static void attend_unit(const struct attending *job, size_t unit) {
    const struct attention *call = job->call;
    int32_t type = call->half.type;
    size_t dim = (size_t)call->head_dim, group = (size_t)(call->heads / call->kv_heads), size = type == FP32 ? 4 : 2;
    size_t head = unit / job->blocks, from = unit % job->blocks * KEYS, count = minimum(KEYS, job->seen - from);
    size_t offset = (head * (size_t)call->rows + (size_t)call->first + from) * dim * size;
    const char *keys = (const char *)call->keys + offset, *values = (const char *)call->values + offset;
    const float *query = job->queries + head * group * dim;
    float *part = job->parts + unit * group * part_size(call), scores[KEYS];
    for (size_t each = 0; each < group; each++, query += dim, part += part_size(call)) {
        float largest = -INFINITY, sum = 0;
        for (size_t key = 0; key < count; key++) {
            float score = dot_of(query, keys + key * dim * size, type, dim) * call->scale;
            if (call->softcap > 0)
                score = call->softcap * tanhf(score / call->softcap);
            scores[key] = score;
            largest = score > largest ? score : largest;
        }
        for (size_t key = 0; key < count; key++) scores[key] = exponential(scores[key] - largest);
        memset(part, 0, dim * sizeof *part);
        for (size_t key = 0; key < count; key++) {
            sum += scores[key];
            add_to(part, scores[key], values + key * dim * size, type, dim);
        }
        part[dim] = largest;
        part[dim + 1] = sum;
    }
}

static void attend_work(void *argument) {
    struct attending *job = argument;
    size_t worker = __atomic_fetch_add(&job->workers, 1, __ATOMIC_RELAXED), unit;
    while (take(&job->units, job->team, worker, &unit)) attend_unit(job, unit);
}

/* mixed [heads, head_dim]: the blocks of each head together. */
static void gather(const struct attending *job, float *mixed) {
    const struct attention *call = job->call;
    size_t dim = (size_t)call->head_dim, group = (size_t)(call->heads / call->kv_heads);
    for (size_t head = 0; head < (size_t)call->heads; head++, mixed += dim) {
        float largest = -INFINITY, sum = 0;
        const float *first = job->parts + (head / group * job->blocks * group + head % group) * part_size(call), *part;
        size_t step = group * part_size(call);
        part = first;
        for (size_t block = 0; block < job->blocks; block++, part += step)
            largest = part[dim] > largest ? part[dim] : largest;
        memset(mixed, 0, dim * sizeof *mixed);
        part = first;
        for (size_t block = 0; block < job->blocks; block++, part += step) {
            float factor = exponential(part[dim] - largest);
            sum = fmaf(factor, part[dim + 1], sum);
            add_to(mixed, factor, part, FP32, dim);
        }
        for (size_t i = 0; i < dim; i++) mixed[i] /= sum;
    }
}

static void clip(float *numbers, size_t count, float limit) {
    for (size_t i = 0; i < count; i++)
        numbers[i] = numbers[i] > limit ? limit : numbers[i] < -limit ? -limit : numbers[i];
}

/* Pairs of numbers, neighbours or half of the turned ones apart. */
static void rotate(const struct attention *call, float *restrict head, const float *restrict cosines,
                   const float *restrict sines) {
    size_t turned = (size_t)call->turned, half = turned / 2;
    float *restrict second = head + half;
    if (call->interleaved)
        for (size_t i = 0; i < turned; i += 2) {
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

/* Queries and keys, normed and turned, in place; keys and values to the cache. */
static void place(const struct attention *call, float *qkv, float *turn) {
    const struct half *half = &call->half;
    size_t dim = (size_t)call->head_dim, heads = (size_t)call->heads, shared = (size_t)call->kv_heads;
    size_t size = half->type == FP32 ? 4 : 2, turned = (size_t)call->turned, all = (heads + 2 * shared) * dim;
    float *keys = qkv + heads * dim, *values = keys + shared * dim;
    if (call->clip > 0 && call->qk_norm == NO_NORM)
        clip(qkv, all, call->clip);
    if (call->qk_norm == ALL_HEADS) {
        normalise(RMS, half->eps, call->q_norm, half->type, qkv, heads * dim);
        normalise(RMS, half->eps, call->k_norm, half->type, keys, shared * dim);
    }
    for (size_t head = 0; call->qk_norm == EACH_HEAD && head < heads + shared; head++)
        normalise(RMS, half->eps, head < heads ? call->q_norm : call->k_norm, half->type, qkv + head * dim, dim);
    if (call->clip > 0 && call->qk_norm != NO_NORM)
        clip(qkv, all, call->clip);
    size_t row = (size_t)call->position * turned * size;
    load_numbers(turn, (const char *)call->cosines + row, half->type, turned);
    load_numbers(turn + turned, (const char *)call->sines + row, half->type, turned);
    for (size_t head = 0; head < heads + shared; head++) rotate(call, qkv + head * dim, turn, turn + turned);
    for (size_t head = 0; head < shared; head++) {
        row = (head * (size_t)call->rows + (size_t)call->last) * dim * size;
        store_numbers((char *)call->keys + row, half->type, keys + head * dim, dim);
        store_numbers((char *)call->values + row, half->type, values + head * dim, dim);
    }
}

static enum outcome attention(const struct attention *call) {
    const struct half *half = &call->half;
    size_t width = (size_t)half->width, dim = (size_t)call->head_dim, query = (size_t)call->heads * dim;
    size_t projected = query + 2 * (size_t)call->kv_heads * dim;
    size_t seen = (size_t)(call->last - call->first) + 1;
    struct team team = enough(&half->team, seen * query * 4);
    struct attending job = {.call = call, .team = &team, .seen = seen};
    job.blocks = parts(job.seen, KEYS);
    job.units.count = (size_t)call->kv_heads * job.blocks;
    size_t turn = 2 * (size_t)call->turned, all_parts = (size_t)call->heads * job.blocks * part_size(call);
    float *hidden = scratch((width + projected + query + turn + all_parts) * sizeof *hidden);
    if (!hidden)
        return NO_MEMORY;
    float *qkv = hidden + width, *mixed = qkv + projected;
    job.queries = qkv;
    job.parts = mixed + query + turn;
    begin_half(half, hidden);
    enum outcome outcome = multiply(half, call->qkv, call->qkv_bias, hidden, width, qkv, projected);
    if (outcome == DONE) {
        place(call, qkv, mixed + query);
        run(&team, attend_work, &job);
        gather(&job, mixed);
        outcome = multiply(half, call->output, call->output_bias, mixed, query, hidden, width);
    }
    if (outcome == DONE)
        end_half(half, hidden);
    free(hidden);
    return outcome;
}

#endif
