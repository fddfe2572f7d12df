/* Attention of one token, from its hidden state and back to it. */
#ifndef MOECLI_ATTENTION_H
#define MOECLI_ATTENTION_H

#include "sublayer.inc.h"

#define KEY_BLOCK 256 /* keys of a task */

/* A task is a block of keys for all heads that share them. It leaves, for each head, the largest score, the sum of
   exp(score - largest), and the values so weighted. */
struct attention_job {
    const struct attention *call;
    const struct thread_pool *pool;
    const float *queries;
    float *partials; /* [kv_heads, blocks, heads / kv_heads, head_dim + 2] */
    size_t seen, blocks, workers;
    struct tasks tasks;
};

static size_t partial_size(const struct attention *call) { return (size_t)call->head_dim + 2; }

static void attend_task(const struct attention_job *job, size_t task) {
    const struct attention *call = job->call;
    int32_t type = call->sublayer.type;
    size_t dim = (size_t)call->head_dim, group = (size_t)(call->heads / call->kv_heads), size = type == FP32 ? 4 : 2;
    size_t head = task / job->blocks, from = task % job->blocks * KEY_BLOCK;
    size_t count = minimum(KEY_BLOCK, job->seen - from);
    size_t offset = (head * (size_t)call->place.rows + (size_t)call->place.first + from) * dim * size;
    const char *keys = (const char *)call->place.keys + offset, *values = (const char *)call->place.values + offset;
    const float *query = job->queries + head * group * dim;
    float *partial = job->partials + task * group * partial_size(call), scores[KEY_BLOCK];
    for (size_t each = 0; each < group; each++, query += dim, partial += partial_size(call)) {
        float largest = -INFINITY, sum = 0;
        for (size_t key = 0; key < count; key++) {
            float score = dot_of(query, keys + key * dim * size, type, dim) * call->scale;
            if (call->softcap > 0)
                score = call->softcap * tanhf(score / call->softcap);
            scores[key] = score;
            largest = score > largest ? score : largest;
        }
        for (size_t key = 0; key < count; key++)
            scores[key] = exponential(scores[key] - largest);
        memset(partial, 0, dim * sizeof *partial);
        for (size_t key = 0; key < count; key++) {
            sum += scores[key];
            add_to(partial, scores[key], values + key * dim * size, type, dim);
        }
        partial[dim] = largest;
        partial[dim + 1] = sum;
    }
}

static void attend(void *argument) {
    struct attention_job *job = argument;
    size_t worker = __atomic_fetch_add(&job->workers, 1, __ATOMIC_RELAXED), task;
    while (next_task(&job->tasks, job->pool, worker, &task))
        attend_task(job, task);
}

/* mixed [heads, head_dim]: the blocks of each head together. */
static void merge(const struct attention_job *job, float *mixed) {
    const struct attention *call = job->call;
    size_t dim = (size_t)call->head_dim, group = (size_t)(call->heads / call->kv_heads);
    for (size_t head = 0; head < (size_t)call->heads; head++, mixed += dim) {
        float largest = -INFINITY, sum = 0;
        size_t step = group * partial_size(call);
        const float *first = job->partials + (head / group * job->blocks * group + head % group) * partial_size(call);
        const float *partial = first;
        for (size_t block = 0; block < job->blocks; block++, partial += step)
            largest = partial[dim] > largest ? partial[dim] : largest;
        memset(mixed, 0, dim * sizeof *mixed);
        partial = first;
        for (size_t block = 0; block < job->blocks; block++, partial += step) {
            float factor = exponential(partial[dim] - largest);
            sum = fmaf(factor, partial[dim + 1], sum);
            add_to(mixed, factor, partial, FP32, dim);
        }
        for (size_t i = 0; i < dim; i++)
            mixed[i] /= sum;
    }
}

static void clip(float *numbers, size_t count, float limit) {
    for (size_t i = 0; i < count; i++)
        numbers[i] = numbers[i] > limit ? limit : numbers[i] < -limit ? -limit : numbers[i];
}

/* Queries and keys, normed and rotated, in place; keys and values to the cache. */
static void rotate_and_cache(const struct attention *call, float *qkv, float *angles) {
    const struct sublayer *sublayer = &call->sublayer;
    size_t dim = (size_t)call->head_dim, heads = (size_t)call->heads, kv_heads = (size_t)call->kv_heads;
    size_t size = sublayer->type == FP32 ? 4 : 2, rotary_dim = (size_t)call->rotary_dim;
    size_t all = (heads + 2 * kv_heads) * dim;
    float *keys = qkv + heads * dim, *values = keys + kv_heads * dim;
    if (call->clip > 0 && call->qk_norm == NO_NORM)
        clip(qkv, all, call->clip);
    if (call->qk_norm == ALL_HEADS) {
        normalise(RMS, sublayer->eps, call->q_norm, sublayer->type, qkv, heads * dim);
        normalise(RMS, sublayer->eps, call->k_norm, sublayer->type, keys, kv_heads * dim);
    }
    for (size_t head = 0; call->qk_norm == EACH_HEAD && head < heads + kv_heads; head++) {
        const void *norm = head < heads ? call->q_norm : call->k_norm;
        normalise(RMS, sublayer->eps, norm, sublayer->type, qkv + head * dim, dim);
    }
    if (call->clip > 0 && call->qk_norm != NO_NORM)
        clip(qkv, all, call->clip);
    load_angles(sublayer, &call->place, rotary_dim, angles);
    for (size_t head = 0; head < heads + kv_heads; head++)
        rotate(call->interleaved, qkv + head * dim, angles, rotary_dim);
    for (size_t head = 0; head < kv_heads; head++) {
        size_t row = (head * (size_t)call->place.rows + (size_t)call->place.last) * dim * size;
        store_numbers((char *)call->place.keys + row, sublayer->type, keys + head * dim, dim);
        store_numbers((char *)call->place.values + row, sublayer->type, values + head * dim, dim);
    }
}

static enum status attention_forward(const struct attention *call) {
    const struct sublayer *sublayer = &call->sublayer;
    size_t hidden_size = (size_t)sublayer->hidden_size, dim = (size_t)call->head_dim, query = (size_t)call->heads * dim;
    size_t projected = query + 2 * (size_t)call->kv_heads * dim;
    size_t seen = (size_t)(call->place.last - call->place.first) + 1;
    struct thread_pool pool = limit_threads(&sublayer->pool, seen * query * 4);
    struct attention_job job = {.call = call, .pool = &pool, .seen = seen};
    job.blocks = ceil_div(job.seen, KEY_BLOCK);
    job.tasks.count = (size_t)call->kv_heads * job.blocks;
    size_t angles = 2 * (size_t)call->rotary_dim, all_partials = (size_t)call->heads * job.blocks * partial_size(call);
    float *hidden = allocate((hidden_size + projected + query + angles + all_partials) * sizeof *hidden);
    if (!hidden)
        return NO_MEMORY;
    float *qkv = hidden + hidden_size, *mixed = qkv + projected;
    job.queries = qkv;
    job.partials = mixed + query + angles;
    begin_sublayer(sublayer, hidden);
    enum status status =
        multiply(sublayer, sublayer->format, call->qkv, call->qkv_bias, hidden, hidden_size, qkv, projected);
    if (status == DONE) {
        rotate_and_cache(call, qkv, mixed + query);
        run(&pool, attend, &job);
        merge(&job, mixed);
        status =
            multiply(sublayer, sublayer->format, call->output, call->output_bias, mixed, query, hidden, hidden_size);
    }
    if (status == DONE)
        end_sublayer(sublayer, hidden);
    free(hidden);
    return status;
}

#endif
