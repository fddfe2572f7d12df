/* Latent attention of a few tokens, from their hidden states and back to them. */
#ifndef MOECLI_LATENT_ATTENTION_H
#define MOECLI_LATENT_ATTENTION_H

#include "attention.inc.h"
#include "prompt_attention.inc.h"

#define SPANS 16     /* into which the keys are divided at most, one a task */
#define SPAN_UNIT 24 /* keys: a multiple of every TILE_ROWS */

/* Queries meet latents as in a prompt, all heads side by side in lanes. Four phases, the tasks of each: heads, whose
   queries go through the keys' expansion; spans of keys, which leave what prompt_attention keeps of a tile; tiles of
   heads, whose spans become one; heads, whose latents go through the values' expansion. */
struct latent_job {
    const struct latent_attention *call;
    const struct thread_pool *pool;
    struct prompt_job meeting; /* widths and strides */
    size_t seen, span, spans, workers;
    const float *queries; /* [heads, nope_dim + rotary_dim] */
    float *lanes;         /* [tiles, rank + rotary_dim, WIDTH], the queries */
    float *partials;      /* [spans, tiles, sums, largest and total, WIDTH] */
    float *mixed;         /* [heads, value_dim] */
    float *scratch;       /* of each thread: keys, scores, a row */
    struct tasks absorb, meet, merge, expand;
};

static size_t latent_partial(const struct latent_job *job) { return (value_rows(&job->meeting) + 2) * WIDTH; }

static size_t latent_scratch(const struct latent_job *job) {
    return KEYS * (job->meeting.key_stride + WIDTH) + rounded_up(job->meeting.key_dim, 16);
}

static const void *expansion_at(const struct latent_attention *call, size_t head, size_t row) {
    size_t at = (head * (size_t)(call->nope_dim + call->value_dim) + row) * (size_t)call->rank;
    return (const char *)call->expansion + at * number_size(call->sublayer.type);
}

static void absorb_head(const struct latent_job *job, size_t head, float *row) {
    const struct latent_attention *call = job->call;
    size_t rank = (size_t)call->rank, nope_dim = (size_t)call->nope_dim, rotary_dim = (size_t)call->rotary_dim;
    const float *query = job->queries + head * (nope_dim + rotary_dim);
    float *to = job->lanes + head / WIDTH * WIDTH * job->meeting.key_dim + head % WIDTH;
    memset(row, 0, rank * sizeof *row);
    for (size_t i = 0; i < nope_dim; i++)
        add_to(row, query[i], expansion_at(call, head, i), call->sublayer.type, rank);
    memcpy(row + rank, query + nope_dim, rotary_dim * sizeof *row);
    for (size_t i = 0; i < rank + rotary_dim; i++)
        to[i * WIDTH] = row[i] * call->scale;
}

static void meet_span(const struct latent_job *job, size_t span, const struct prompt_scratch *own) {
    const struct prompt_job *meeting = &job->meeting;
    size_t rows = value_rows(meeting), end = minimum((span + 1) * job->span, job->seen);
    float *partials = job->partials + span * meeting->tiles * latent_partial(job);
    for (size_t tile = 0; tile < meeting->tiles; tile++) {
        float *sums = partials + tile * latent_partial(job), *largest = sums + rows * WIDTH;
        memset(sums, 0, latent_partial(job) * sizeof *sums);
        EACH_QUERY
        largest[lane] = -INFINITY;
    }
    for (size_t key = span * job->span; key < end; key += KEYS) {
        size_t count = minimum(KEYS, end - key);
        load_block(meeting->call, meeting->call->keys, key, count, meeting->key_dim, own->keys, meeting->key_stride);
        for (size_t tile = 0; tile < meeting->tiles; tile++) {
            float *sums = partials + tile * latent_partial(job), *largest = sums + rows * WIDTH;
            score_keys(meeting, own, job->lanes + tile * WIDTH * meeting->key_dim, count);
            soften(own->scores, count, largest, largest + WIDTH, sums, rows);
            add_values(meeting, own, sums, count);
        }
    }
}

/* Into the first span. */
static void merge_tile(const struct latent_job *job, size_t tile) {
    size_t rows = value_rows(&job->meeting), step = job->meeting.tiles * latent_partial(job);
    float *first = job->partials + tile * latent_partial(job), *last = first + job->spans * step;
    float *total = first + (rows + 1) * WIDTH, most[WIDTH], factor[WIDTH];
    memcpy(most, first + rows * WIDTH, sizeof most);
    for (const float *span = first; span < last; span += step)
        EACH_QUERY
    most[lane] = span[rows * WIDTH + (size_t)lane] > most[lane] ? span[rows * WIDTH + (size_t)lane] : most[lane];
    for (float *span = first; span < last; span += step) {
        EACH_QUERY
        factor[lane] = weight(span[rows * WIDTH + (size_t)lane] - most[lane]);
        for (size_t row = 0; row < rows + 2; row++) {
            if (row == rows)
                continue;
            EACH_QUERY {
                float part = span[row * WIDTH + (size_t)lane] * factor[lane];
                first[row * WIDTH + (size_t)lane] = span == first ? part : first[row * WIDTH + (size_t)lane] + part;
            }
        }
    }
    EACH_QUERY
    factor[lane] = 1 / total[lane];
    for (size_t row = 0; row < rows; row++)
        EACH_QUERY
    first[row * WIDTH + (size_t)lane] *= factor[lane];
}

static void expand_head(const struct latent_job *job, size_t head, float *row) {
    const struct latent_attention *call = job->call;
    size_t rank = (size_t)call->rank, value_dim = (size_t)call->value_dim;
    const float *from = job->partials + head / WIDTH * latent_partial(job) + head % WIDTH;
    for (size_t i = 0; i < rank; i++)
        row[i] = from[i * WIDTH];
    for (size_t i = 0; i < value_dim; i++)
        job->mixed[head * value_dim + i] =
            dot_of(row, expansion_at(call, head, (size_t)call->nope_dim + i), call->sublayer.type, rank);
}

static void latent_work(void *argument) {
    struct latent_job *job = argument;
    size_t worker = __atomic_fetch_add(&job->workers, 1, __ATOMIC_RELAXED), task;
    float *keys = job->scratch + worker * latent_scratch(job), *scores = keys + KEYS * job->meeting.key_stride;
    float *row = scores + KEYS * WIDTH;
    struct prompt_scratch own = {.keys = keys, .values = keys, .scores = scores};
    memset(keys, 0, KEYS * job->meeting.key_stride * sizeof *keys); /* what is behind the last key is multiplied too */
    while (next_task(&job->absorb, job->pool, worker, &task))
        absorb_head(job, task, row);
    barrier(job->pool);
    while (next_task(&job->meet, job->pool, worker, &task))
        meet_span(job, task, &own);
    barrier(job->pool);
    while (next_task(&job->merge, job->pool, worker, &task))
        merge_tile(job, task);
    barrier(job->pool);
    while (next_task(&job->expand, job->pool, worker, &task))
        expand_head(job, task, row);
}

/* mixed [heads, value_dim] of a token from its queries and the cache */
static enum status meet_latents(const struct latent_attention *call, const struct place *place, const float *queries,
                                float *mixed) {
    size_t heads = (size_t)call->heads, rank = (size_t)call->rank, width = rank + (size_t)call->rotary_dim;
    size_t row = (size_t)place->first * width * number_size(call->sublayer.type);
    struct prompt_attention latents = {.type = call->sublayer.type, .keys = (const char *)place->keys + row};
    struct thread_pool pool =
        limit_threads(&call->sublayer.pool, heads * (size_t)(call->nope_dim + call->value_dim) * rank);
    struct latent_job job = {.call = call, .pool = &pool, .queries = queries, .mixed = mixed};
    job.meeting = (struct prompt_job){.call = &latents, .key_dim = width, .value_dim = rank};
    job.meeting.key_stride = job.meeting.value_stride = row_stride(width);
    job.meeting.tiles = ceil_div(heads, WIDTH);
    job.seen = seen_from(place);
    job.span = rounded_up(ceil_div(job.seen, SPANS), SPAN_UNIT);
    job.spans = ceil_div(job.seen, job.span);
    job.absorb.count = job.expand.count = heads;
    job.meet.count = job.spans;
    job.merge.count = job.meeting.tiles;
    size_t lanes = job.meeting.tiles * WIDTH * width, partials = job.spans * job.meeting.tiles * latent_partial(&job);
    size_t threads = single_threaded(&pool) ? 1 : (size_t)pool.threads;
    job.lanes = allocate((lanes + partials + threads * latent_scratch(&job)) * sizeof(float));
    if (!job.lanes)
        return NO_MEMORY;
    memset(job.lanes, 0, lanes * sizeof(float)); /* lanes without a head */
    job.partials = job.lanes + lanes;
    job.scratch = job.partials + partials;
    run(&pool, latent_work, &job);
    free(job.lanes);
    return DONE;
}

/* numbers [tokens, rows] = a plain matrix times the hidden states; the first `rank` of each normed */
static enum status project_down(const struct latent_attention *call, const void *matrix, const void *bias,
                                const void *norm, const float *hidden, float *numbers, size_t rows, size_t rank) {
    const struct sublayer *sublayer = &call->sublayer;
    size_t columns = (size_t)sublayer->hidden_size;
    enum status status = multiply(sublayer, PLAIN + sublayer->type, matrix, bias, hidden, columns, numbers, rows);
    for (size_t token = 0; token < (size_t)sublayer->tokens; token++)
        normalise(RMS, call->norm_eps, norm, sublayer->type, numbers + token * rows, rank);
    return status;
}

/* A token's queries [heads, nope_dim + rotary_dim] are rotated where positions turn anything, and its key; the key goes
   to the cache with the latent. */
static void rotate_and_cache_latent(const struct latent_attention *call, const struct place *place, float *queries,
                                    float *latent, float *angles) {
    size_t rotary_dim = (size_t)call->rotary_dim, width = (size_t)call->rank + rotary_dim;
    size_t nope_dim = (size_t)call->nope_dim, row = (size_t)place->last * width * number_size(call->sublayer.type);
    if (place->cosines)
        load_angles(&call->sublayer, place, rotary_dim, angles);
    for (size_t head = 0; place->cosines && head < (size_t)call->heads; head++)
        rotate(call->interleaved, queries + head * (nope_dim + rotary_dim) + nope_dim, angles, rotary_dim);
    for (size_t i = 0; place->query_scale != 1 && i < (size_t)call->heads * (nope_dim + rotary_dim); i++)
        queries[i] *= place->query_scale;
    if (place->cosines)
        rotate(call->interleaved, latent + call->rank, angles, rotary_dim);
    store_numbers((char *)place->keys + row, call->sublayer.type, latent, width);
}

static enum status latent_attention_forward(const struct latent_attention *call) {
    const struct sublayer *sublayer = &call->sublayer;
    size_t hidden_size = (size_t)sublayer->hidden_size, tokens = (size_t)sublayer->tokens, heads = (size_t)call->heads;
    size_t query = heads * (size_t)(call->nope_dim + call->rotary_dim), value = heads * (size_t)call->value_dim;
    size_t width = (size_t)(call->rank + call->rotary_dim), rank = (size_t)call->query_rank;
    size_t gates = (size_t)call->gate_width;
    size_t numbers = tokens * (hidden_size + query + value + width + rank + gates) + 2 * (size_t)call->rotary_dim;
    float *hidden = allocate(numbers * sizeof *hidden);
    if (!hidden)
        return NO_MEMORY;
    float *queries = hidden + tokens * hidden_size, *mixed = queries + tokens * query,
          *latents = mixed + tokens * value;
    float *low = latents + tokens * width, *gate = low + tokens * rank, *angles = gate + tokens * gates;
    begin_sublayer(sublayer, hidden);
    enum status status = project_down(call, call->latent_down, call->latent_down_bias, call->latent_norm, hidden,
                                      latents, width, (size_t)call->rank);
    if (status == DONE && rank)
        status = project_down(call, call->query_down, call->query_down_bias, call->query_norm, hidden, low, rank, rank);
    if (status == DONE)
        status = multiply(sublayer, sublayer->format, call->query, NULL, rank ? low : hidden, rank ? rank : hidden_size,
                          queries, query);
    if (status == DONE && gates)
        status = multiply(sublayer, sublayer->format, call->gate, NULL, hidden, hidden_size, gate, gates);
    for (size_t token = 0; status == DONE && token < tokens; token++)
        rotate_and_cache_latent(call, call->places + token, queries + token * query, latents + token * width, angles);
    for (size_t token = 0; status == DONE && token < tokens; token++)
        status = meet_latents(call, call->places + token, queries + token * query, mixed + token * value);
    if (status == DONE && gates)
        open_gate(GATE_SIGMOID, tokens * gates, value / gates, gate, mixed);
    if (status == DONE)
        status =
            multiply(sublayer, sublayer->format, call->output, call->output_bias, mixed, value, hidden, hidden_size);
    if (status == DONE)
        end_sublayer(sublayer, hidden);
    free(hidden);
    return status;
}

#endif
