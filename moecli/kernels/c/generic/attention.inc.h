/* Attention of a few tokens, from their hidden states and back to them. */
#ifndef MOECLI_ATTENTION_H
#define MOECLI_ATTENTION_H

#include "sublayer.inc.h"

#define KEY_BLOCK 256 /* keys of a task */

/* A task is a block of one token's keys for all heads that share them. It leaves, for each head, the largest score, the
   sum of exp(score - largest), and the values so weighted. */
struct attention_job {
    const struct attention *call;
    const struct thread_pool *pool;
    const float *queries; /* [tokens, query_stride] */
    float *partials;      /* [tokens, kv_heads, blocks, heads / kv_heads, value_dim + 2] */
    size_t query_stride, blocks, workers;
    struct tasks tasks;
};

static size_t partial_size(const struct attention *call) { return (size_t)call->value_dim + 2; }

static size_t seen_from(const struct place *place) { return (size_t)(place->last - place->first) + 1; }

static void attend_task(const struct attention_job *job, size_t task) {
    const struct attention *call = job->call;
    int32_t type = call->sublayer.type;
    size_t dim = (size_t)call->head_dim, wide = (size_t)call->value_dim, size = number_size(type);
    size_t group = (size_t)(call->heads / call->kv_heads);
    size_t head = task / job->blocks % (size_t)call->kv_heads, from = task % job->blocks * KEY_BLOCK;
    size_t token = task / job->blocks / (size_t)call->kv_heads;
    const struct place *place = call->places + token;
    if (from >= seen_from(place))
        return;
    size_t count = minimum(KEY_BLOCK, seen_from(place) - from);
    size_t row = head * (size_t)place->rows + (size_t)place->first + from;
    const char *keys = (const char *)place->keys + row * dim * size;
    const char *values = (const char *)place->values + row * wide * size;
    const float *query = job->queries + token * job->query_stride + head * group * dim;
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
        memset(partial, 0, wide * sizeof *partial);
        for (size_t key = 0; key < count; key++) {
            sum += scores[key];
            add_to(partial, scores[key], values + key * wide * size, type, wide);
        }
        partial[wide] = largest;
        partial[wide + 1] = sum;
    }
}

static void attend(void *argument) {
    struct attention_job *job = argument;
    size_t worker = __atomic_fetch_add(&job->workers, 1, __ATOMIC_RELAXED), task;
    while (next_task(&job->tasks, job->pool, worker, &task))
        attend_task(job, task);
}

/* mixed [heads, value_dim] of a token: the blocks of each head together. */
static void merge(const struct attention_job *job, size_t token, float *mixed) {
    const struct attention *call = job->call;
    size_t dim = (size_t)call->value_dim, heads = (size_t)call->heads, group = heads / (size_t)call->kv_heads;
    size_t blocks = ceil_div(seen_from(call->places + token), KEY_BLOCK), step = group * partial_size(call);
    const float *partials = job->partials + token * heads * job->blocks * partial_size(call);
    for (size_t head = 0; head < heads; head++, mixed += dim) {
        float sink = call->sinks ? number(call->sinks, call->sublayer.type, head) : -INFINITY, largest = sink, sum = 0;
        const float *first = partials + (head / group * job->blocks * group + head % group) * partial_size(call);
        const float *partial = first;
        for (size_t block = 0; block < blocks; block++, partial += step)
            largest = partial[dim] > largest ? partial[dim] : largest;
        memset(mixed, 0, dim * sizeof *mixed);
        if (call->sinks)
            sum = exponential(sink - largest);
        partial = first;
        for (size_t block = 0; block < blocks; block++, partial += step) {
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

static void normalise_heads(const struct attention *call, float *heads) {
    size_t dim = (size_t)call->head_dim, queries = (size_t)call->heads, count = queries + (size_t)call->kv_heads;
    for (size_t head = 0; head < count; head++) {
        const void *norm = head < queries ? call->q_norm : call->k_norm;
        normalise(call->sublayer.norm == ZERO_CENTRED ? ZERO_CENTRED : RMS, call->sublayer.eps, norm,
                  call->sublayer.type, heads + head * dim, dim);
    }
}

/* Numbers that the projection makes of a token. */
static size_t projected_width(const struct attention *call) {
    int64_t values = call->keys_as_values ? 0 : call->kv_heads * call->value_dim;
    return (size_t)((call->heads + call->kv_heads) * call->head_dim + values);
}

/* Value heads, normed and scaled, in place. */
static void finish_values(const struct attention *call, float *values) {
    size_t dim = (size_t)call->value_dim, all = (size_t)call->kv_heads * dim;
    for (size_t head = 0; call->value_norm && head < (size_t)call->kv_heads; head++)
        normalise(RMS, call->sublayer.eps, NULL, FP32, values + head * dim, dim);
    for (size_t i = 0; call->value_scale != 1 && i < all; i++)
        values[i] *= call->value_scale;
}

/* Queries and keys, normed and rotated, in place; keys and values to the cache. `scratch`: angles [2, rotary_dim], and
   values where keys are also those. */
static void rotate_and_cache(const struct attention *call, const struct place *place, float *qkv, float *scratch) {
    const struct sublayer *sublayer = &call->sublayer;
    size_t dim = (size_t)call->head_dim, heads = (size_t)call->heads, kv_heads = (size_t)call->kv_heads;
    size_t size = sublayer->type == FP32 ? 4 : 2, rotary_dim = (size_t)call->rotary_dim;
    size_t all = projected_width(call), wide = (size_t)call->value_dim;
    float *keys = qkv + heads * dim, *values = keys + kv_heads * dim, *angles = scratch;
    if (call->keys_as_values)
        values = memcpy(scratch + 2 * rotary_dim, keys, kv_heads * dim * sizeof *keys);
    if (call->clip > 0 && call->qk_norm == NO_NORM)
        clip(qkv, all, call->clip);
    if (call->qk_norm == ALL_HEADS) {
        normalise(RMS, sublayer->eps, call->q_norm, sublayer->type, qkv, heads * dim);
        normalise(RMS, sublayer->eps, call->k_norm, sublayer->type, keys, kv_heads * dim);
    }
    if (call->qk_norm == EACH_HEAD)
        normalise_heads(call, qkv);
    if (call->clip > 0 && call->qk_norm != NO_NORM)
        clip(qkv, all, call->clip);
    load_angles(sublayer, place, rotary_dim, angles);
    for (size_t head = 0; head < heads + kv_heads; head++)
        rotate(call->interleaved, qkv + head * dim, angles, rotary_dim);
    if (call->qk_norm == EACH_ROTATED_HEAD)
        normalise_heads(call, qkv);
    for (size_t i = 0; place->query_scale != 1 && i < heads * dim; i++)
        qkv[i] *= place->query_scale;
    finish_values(call, values);
    for (size_t head = 0; head < kv_heads; head++) {
        size_t row = (head * (size_t)place->rows + (size_t)place->last) * size;
        store_numbers((char *)place->keys + row * dim, sublayer->type, keys + head * dim, dim);
        store_numbers((char *)place->values + row * wide, sublayer->type, values + head * wide, wide);
    }
}

/* mixed [count * each] times the gate's factors [count], of which each is for as many numbers. */
static void open_gate(int32_t kind, size_t count, size_t each, const float *gates, float *mixed) {
    for (size_t i = 0; i < count; i++, mixed += each) {
        float gate = gates[i], power = exponential(kind == GATE_SOFTPLUS ? gate : -gate);
        float factor = kind == GATE_SIGMOID ? 1 / (1 + power) : gate > 20 ? gate : log1pf(power);
        for (size_t j = 0; j < each; j++)
            mixed[j] *= factor;
    }
}

static enum status attention_forward(const struct attention *call) {
    const struct sublayer *sublayer = &call->sublayer;
    size_t hidden_size = (size_t)sublayer->hidden_size, tokens = (size_t)sublayer->tokens, dim = (size_t)call->head_dim;
    size_t heads = (size_t)call->heads, mixes = heads * (size_t)call->value_dim, projected = projected_width(call);
    size_t seen = 0, most = 0;
    for (const struct place *place = call->places; place < call->places + tokens; place++) {
        seen += seen_from(place);
        most = seen_from(place) > most ? seen_from(place) : most;
    }
    struct thread_pool pool = limit_threads(&sublayer->pool, seen * heads * dim * 4);
    struct attention_job job = {.call = call, .pool = &pool, .query_stride = projected};
    job.blocks = ceil_div(most, KEY_BLOCK);
    job.tasks.count = tokens * (size_t)call->kv_heads * job.blocks;
    size_t scratch = 2 * (size_t)call->rotary_dim + (size_t)call->kv_heads * dim, gates = (size_t)call->gate_width;
    size_t partials = tokens * heads * job.blocks * partial_size(call);
    float *hidden =
        allocate((tokens * (hidden_size + projected + mixes + gates) + scratch + partials) * sizeof *hidden);
    if (!hidden)
        return NO_MEMORY;
    float *qkv = hidden + tokens * hidden_size, *mixed = qkv + tokens * projected, *gate = mixed + tokens * mixes;
    float *own = gate + tokens * gates;
    job.queries = qkv;
    job.partials = own + scratch;
    begin_sublayer(sublayer, hidden);
    enum status status =
        multiply(sublayer, sublayer->format, call->qkv, call->qkv_bias, hidden, hidden_size, qkv, projected);
    if (status == DONE && call->gate)
        status = multiply(sublayer, sublayer->format, call->gate, NULL, hidden, hidden_size, gate, gates);
    if (status == DONE) {
        for (size_t token = 0; token < tokens; token++)
            rotate_and_cache(call, call->places + token, qkv + token * projected, own);
        run(&pool, attend, &job);
        for (size_t token = 0; token < tokens; token++)
            merge(&job, token, mixed + token * mixes);
        if (call->gate)
            open_gate(call->gate_kind, tokens * gates, mixes / gates, gate, mixed);
        status =
            multiply(sublayer, sublayer->format, call->output, call->output_bias, mixed, mixes, hidden, hidden_size);
    }
    if (status == DONE)
        end_sublayer(sublayer, hidden);
    free(hidden);
    return status;
}

#endif
