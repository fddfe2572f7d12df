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
    float *partials;      /* [tokens, kv_heads, blocks, heads / kv_heads, head_dim + 2] */
    size_t query_stride, blocks, workers;
    struct tasks tasks;
};

static size_t partial_size(const struct attention *call) { return (size_t)call->head_dim + 2; }

static size_t seen_from(const struct place *place) { return (size_t)(place->last - place->first) + 1; }

static void attend_task(const struct attention_job *job, size_t task) {
    const struct attention *call = job->call;
    int32_t type = call->sublayer.type;
    size_t dim = (size_t)call->head_dim, group = (size_t)(call->heads / call->kv_heads), size = number_size(type);
    size_t head = task / job->blocks % (size_t)call->kv_heads, from = task % job->blocks * KEY_BLOCK;
    size_t token = task / job->blocks / (size_t)call->kv_heads;
    const struct place *place = call->places + token;
    if (from >= seen_from(place))
        return;
    size_t count = minimum(KEY_BLOCK, seen_from(place) - from);
    size_t offset = (head * (size_t)place->rows + (size_t)place->first + from) * dim * size;
    const char *keys = (const char *)place->keys + offset, *values = (const char *)place->values + offset;
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

/* mixed [heads, head_dim] of a token: the blocks of each head together. */
static void merge(const struct attention_job *job, size_t token, float *mixed) {
    const struct attention *call = job->call;
    size_t dim = (size_t)call->head_dim, heads = (size_t)call->heads, group = heads / (size_t)call->kv_heads;
    size_t blocks = ceil_div(seen_from(call->places + token), KEY_BLOCK), step = group * partial_size(call);
    const float *partials = job->partials + token * heads * job->blocks * partial_size(call);
    for (size_t head = 0; head < heads; head++, mixed += dim) {
        float largest = -INFINITY, sum = 0;
        const float *first = partials + (head / group * job->blocks * group + head % group) * partial_size(call);
        const float *partial = first;
        for (size_t block = 0; block < blocks; block++, partial += step)
            largest = partial[dim] > largest ? partial[dim] : largest;
        memset(mixed, 0, dim * sizeof *mixed);
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

/* Queries and keys, normed and rotated, in place; keys and values to the cache. */
static void rotate_and_cache(const struct attention *call, const struct place *place, float *qkv, float *angles) {
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
    if (call->qk_norm == EACH_HEAD)
        normalise_heads(call, qkv);
    if (call->clip > 0 && call->qk_norm != NO_NORM)
        clip(qkv, all, call->clip);
    load_angles(sublayer, place, rotary_dim, angles);
    for (size_t head = 0; head < heads + kv_heads; head++)
        rotate(call->interleaved, qkv + head * dim, angles, rotary_dim);
    if (call->qk_norm == EACH_ROTATED_HEAD)
        normalise_heads(call, qkv);
    for (size_t head = 0; head < kv_heads; head++) {
        size_t row = (head * (size_t)place->rows + (size_t)place->last) * dim * size;
        store_numbers((char *)place->keys + row, sublayer->type, keys + head * dim, dim);
        store_numbers((char *)place->values + row, sublayer->type, values + head * dim, dim);
    }
}

/* mixed [tokens, heads, head_dim] times the gate's factors [tokens, gate_width], of which each is for as many numbers.
 */
static void open_gate(const struct attention *call, const float *gates, float *mixed) {
    size_t count = (size_t)(call->sublayer.tokens * call->gate_width);
    size_t each = (size_t)(call->heads * call->head_dim / call->gate_width);
    for (size_t i = 0; i < count; i++, mixed += each) {
        float factor = 1 / (1 + exponential(-gates[i]));
        for (size_t j = 0; j < each; j++)
            mixed[j] *= factor;
    }
}

static enum status attention_forward(const struct attention *call) {
    const struct sublayer *sublayer = &call->sublayer;
    size_t hidden_size = (size_t)sublayer->hidden_size, tokens = (size_t)sublayer->tokens, dim = (size_t)call->head_dim;
    size_t heads = (size_t)call->heads, query = heads * dim, projected = query + 2 * (size_t)call->kv_heads * dim;
    size_t seen = 0, most = 0;
    for (const struct place *place = call->places; place < call->places + tokens; place++) {
        seen += seen_from(place);
        most = seen_from(place) > most ? seen_from(place) : most;
    }
    struct thread_pool pool = limit_threads(&sublayer->pool, seen * query * 4);
    struct attention_job job = {.call = call, .pool = &pool, .query_stride = projected};
    job.blocks = ceil_div(most, KEY_BLOCK);
    job.tasks.count = tokens * (size_t)call->kv_heads * job.blocks;
    size_t gates = (size_t)call->gate_width;
    size_t angles = 2 * (size_t)call->rotary_dim, partials = tokens * heads * job.blocks * partial_size(call);
    float *hidden = allocate((tokens * (hidden_size + projected + query + gates) + angles + partials) * sizeof *hidden);
    if (!hidden)
        return NO_MEMORY;
    float *qkv = hidden + tokens * hidden_size, *mixed = qkv + tokens * projected, *angle = mixed + tokens * query;
    job.queries = qkv;
    job.partials = angle + angles;
    float *gated = job.partials + partials;
    begin_sublayer(sublayer, hidden);
    enum status status =
        multiply(sublayer, sublayer->format, call->qkv, call->qkv_bias, hidden, hidden_size, qkv, projected);
    if (status == DONE && gates)
        status = multiply(sublayer, sublayer->format, call->gate, NULL, hidden, hidden_size, gated, gates);
    if (status == DONE) {
        for (size_t token = 0; token < tokens; token++)
            rotate_and_cache(call, call->places + token, qkv + token * projected, angle);
        run(&pool, attend, &job);
        for (size_t token = 0; token < tokens; token++)
            merge(&job, token, mixed + token * query);
        if (gates)
            open_gate(call, gated, mixed);
        status =
            multiply(sublayer, sublayer->format, call->output, call->output_bias, mixed, query, hidden, hidden_size);
    }
    if (status == DONE)
        end_sublayer(sublayer, hidden);
    free(hidden);
    return status;
}

#endif
