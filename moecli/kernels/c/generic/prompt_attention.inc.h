/* Attention of a prompt: many queries at once over the keys and values of a cache, softmax block by block. */
#ifndef MOECLI_PROMPT_ATTENTION_H
#define MOECLI_PROMPT_ATTENTION_H

#include "activation.inc.h"
#include "vectors.inc.h"

/* Queries lie side by side in the lanes of vectors, WIDTH of them in a tile; keys and values are taken as they come, a
   number at a time for all lanes. Every sum runs in the order of columns or of keys, and blocks of keys begin at
   multiples of KEYS of the position: a query's result is the same whatever is beside it, on every instruction set. */
#define WIDTH (TILE_VECTORS * LANES)
#define EACH_QUERY for (int lane = 0; lane < WIDTH; lane++)
#define EACH_TILE_ROW _Pragma("GCC unroll 8") for (int row = 0; row < TILE_ROWS; row++)
#define EACH_TILE_VECTOR _Pragma("GCC unroll 4") for (int v = 0; v < TILE_VECTORS; v++)
#define KEYS 96     /* of a block: a multiple of every TILE_ROWS */
#define QUERIES 128 /* of a task, those of all heads that share keys */
#define SHARING 512 /* the same where a task first expands its keys: the more share them, the better */

struct prompt_job {
    const struct prompt_attention *call;
    const struct thread_pool *pool;
    size_t blocks, block_tokens, tiles, workers;
    size_t key_dim, value_dim; /* of what queries meet: latents have other widths than heads */
    size_t key_stride, value_stride, latent_stride;
    int absorbs, expands;
    float *scratch;
    size_t scratch_size; /* numbers of a thread */
    struct tasks tasks;
};

/* What a thread works with. Tiles follow one another: queries [tiles, key_dim, WIDTH], sums [tiles, values, WIDTH],
   largest and total [tiles, WIDTH]; `expansion` is a head's, turned: [columns / WIDTH, rank, WIDTH]. */
struct prompt_scratch {
    float *keys, *values, *latents, *expansion, *scores, *queries, *sums, *largest, *total, *row, *rows;
};

static size_t rounded_up(size_t count, size_t to) { return ceil_div(count, to) * to; }

/* An odd number of cache lines, so that numbers in one column are not in one set of the cache. */
static size_t row_stride(size_t columns) { return (ceil_div(rounded_up(columns, TILE_ROWS), 16) | 1) * 16; }

static size_t value_rows(const struct prompt_job *job) { return rounded_up(job->value_dim, TILE_ROWS); }

/* Columns of the expansion in whole tiles: those of keys that do not rotate, those of values. */
static size_t expanded_keys(const struct prompt_job *job) { return rounded_up((size_t)job->call->nope_dim, WIDTH); }

static size_t expanded_values(const struct prompt_job *job) { return rounded_up((size_t)job->call->value_dim, WIDTH); }

/* Numbers of the longest row that is taken at once. */
static size_t longest_row(const struct prompt_attention *call) {
    size_t width = (size_t)(call->head_dim > call->value_dim ? call->head_dim : call->value_dim);
    return width > (size_t)call->rank ? width : (size_t)call->rank;
}

/* Hands out the parts of a thread's memory; returns their size. */
static size_t divide_scratch(const struct prompt_job *job, float *memory, struct prompt_scratch *parts) {
    size_t lanes = job->tiles * WIDTH, rank = (size_t)job->call->rank, used = 0;
    size_t expanded = job->expands ? (expanded_keys(job) + expanded_values(job)) * rank : 0;
    struct {
        float **part;
        size_t size;
    } sizes[] = {
        {&parts->keys, KEYS * job->key_stride},
        {&parts->values, job->absorbs ? 0 : KEYS * job->value_stride},
        {&parts->latents, job->expands ? KEYS * job->latent_stride : 0},
        {&parts->expansion, expanded},
        {&parts->scores, KEYS * WIDTH},
        {&parts->queries, lanes * job->key_dim},
        {&parts->sums, lanes * value_rows(job)},
        {&parts->largest, lanes},
        {&parts->total, lanes},
        {&parts->row, longest_row(job->call)},
        {&parts->rows, job->absorbs ? job->block_tokens * rank : 0},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        *sizes[i].part = memory ? memory + used : NULL;
        used += rounded_up(sizes[i].size, 16);
    }
    return used;
}

/* out [TILE_ROWS, WIDTH] += over i of a[row * across + i * along] times b [count, WIDTH] */
INLINE void add_products(float *out, size_t stride, const float *a, size_t across, size_t along, const float *b,
                         size_t count) {
    floats sums[TILE_ROWS][TILE_VECTORS];
    EACH_TILE_ROW
    EACH_TILE_VECTOR
    sums[row][v] = load(out + (size_t)row * stride + v * LANES);
    for (; count; count--, a += along, b += WIDTH) {
        floats lanes[TILE_VECTORS];
        EACH_TILE_VECTOR
        lanes[v] = load(b + v * LANES);
        EACH_TILE_ROW
        EACH_TILE_VECTOR
        sums[row][v] = add_product(sums[row][v], lanes[v], a[(size_t)row * across]);
    }
    EACH_TILE_ROW
    EACH_TILE_VECTOR
    store(out + (size_t)row * stride + v * LANES, sums[row][v]);
}

/* scores [count, WIDTH] of a block's keys, and a few more of what is behind them */
static void score_keys(const struct prompt_job *job, const struct prompt_scratch *own, const float *queries,
                       size_t count) {
    memset(own->scores, 0, rounded_up(count, TILE_ROWS) * WIDTH * sizeof *own->scores);
    for (size_t key = 0; key < count; key += TILE_ROWS)
        add_products(own->scores + key * WIDTH, WIDTH, own->keys + key * job->key_stride, job->key_stride, 1, queries,
                     job->key_dim);
}

static void add_values(const struct prompt_job *job, const struct prompt_scratch *own, float *sums, size_t count) {
    for (size_t row = 0; row < value_rows(job); row += TILE_ROWS)
        add_products(sums + row * WIDTH, WIDTH, own->values + row, 1, job->value_stride, own->scores, count);
}

/* cap * tanh(score / cap) */
static void bend(float *scores, size_t count, float cap) {
    float steepness = 2 / cap;
    for (size_t i = 0; i < count * WIDTH; i++)
        scores[i] = cap - 2 * cap / (1 + exponential(scores[i] * steepness));
}

/* Key i of the block is visible to a lane if above[lane] < i <= below[lane]. */
static void hide(float *restrict scores, size_t count, const int32_t *above, const int32_t *below) {
    for (int32_t key = 0; key < (int32_t)count; key++, scores += WIDTH)
        EACH_QUERY
    scores[lane] = key > above[lane] && key <= below[lane] ? scores[lane] : -INFINITY;
}

/* Of what is far below the largest nothing is left; `exponential` would leave a little, even of minus infinity. */
INLINE float weight(float score) { return score < -87 ? 0 : exponential(score); }

/* Scores become weights relative to the largest score so far; what was summed before is made so too. */
static void soften(float *scores, size_t count, float *largest, float *total, float *sums, size_t rows) {
    float reference[WIDTH], factor[WIDTH];
    EACH_TILE_VECTOR {
        floats most = load(largest + v * LANES);
        for (size_t key = 0; key < count; key++)
            most = larger(load(scores + key * WIDTH + v * LANES), most);
        store(reference + v * LANES, most);
    }
    EACH_QUERY {
        float before = largest[lane];
        largest[lane] = reference[lane];
        reference[lane] = reference[lane] == -INFINITY ? 0 : reference[lane]; /* no key is visible yet */
        factor[lane] = weight(before - reference[lane]);
    }
    for (size_t key = 0; key < count; key++)
        EACH_QUERY
    scores[key * WIDTH + lane] = weight(scores[key * WIDTH + lane] - reference[lane]);
    EACH_TILE_VECTOR {
        floats by = load(factor + v * LANES), sum = times(load(total + v * LANES), by);
        for (size_t key = 0; key < count; key++)
            sum = add_product(sum, load(scores + key * WIDTH + v * LANES), 1);
        store(total + v * LANES, sum);
        for (float *row = sums + v * LANES; row < sums + rows * WIDTH; row += WIDTH)
            store(row, times(load(row), by));
    }
}

/* The queries of a task: `count` of them, of `group` heads, token after token. */
struct some_queries {
    size_t head, group, token, count;
};

static struct some_queries queries_of(const struct prompt_job *job, size_t task) {
    const struct prompt_attention *call = job->call;
    size_t group = (size_t)(call->heads / call->kv_heads), token = task % job->blocks * job->block_tokens;
    size_t tokens = minimum(job->block_tokens, (size_t)call->tokens - token);
    return (struct some_queries){task / job->blocks, group, token, tokens * group};
}

/* Where the numbers of a query begin. */
static size_t query_at(struct some_queries some, size_t query, size_t stride, size_t dim) {
    return (some.token + query / some.group) * stride + (some.head * some.group + query % some.group) * dim;
}

/* Row `row` of a head's expansion [nope_dim + value_dim, rank], in float. */
static const float *expansion_row(const struct prompt_attention *call, size_t head, size_t row, float *memory) {
    size_t rank = (size_t)call->rank, from = (head * (size_t)(call->nope_dim + call->value_dim) + row) * rank;
    load_numbers(memory, (const char *)call->expansion + from * number_size(call->type), call->type, rank);
    return memory;
}

static void query_row(const struct prompt_job *job, const struct prompt_scratch *own, struct some_queries some,
                      size_t query) {
    const struct prompt_attention *call = job->call;
    size_t dim = (size_t)call->head_dim, from = query_at(some, query, (size_t)call->query_stride, dim);
    load_numbers(own->row, (const char *)call->queries + from * number_size(call->type), call->type, dim);
}

static void set_lane(const struct prompt_job *job, const struct prompt_scratch *own, size_t query, size_t column,
                     const float *numbers, size_t count) {
    float *to = own->queries + query / WIDTH * WIDTH * job->key_dim + column * WIDTH + query % WIDTH;
    for (size_t i = 0; i < count; i++)
        to[i * WIDTH] = numbers[i] * job->call->scale;
}

static void get_lane(const struct prompt_job *job, const struct prompt_scratch *own, size_t query, float *numbers) {
    const float *from = own->sums + query / WIDTH * WIDTH * value_rows(job) + query % WIDTH;
    float factor = 1 / own->total[query];
    for (size_t i = 0; i < job->value_dim; i++)
        numbers[i] = from[i * WIDTH] * factor;
}

/* Queries that meet latents: what does not rotate goes through the keys' expansion, whose rows are read once a head. */
static void absorb_queries(const struct prompt_job *job, const struct prompt_scratch *own, struct some_queries some) {
    const struct prompt_attention *call = job->call;
    size_t nope_dim = (size_t)call->nope_dim, rank = (size_t)call->rank;
    for (size_t head = 0; head < some.group; head++) {
        memset(own->rows, 0, job->block_tokens * rank * sizeof *own->rows);
        for (size_t row = 0; row < nope_dim; row++) {
            const float *expansion = expansion_row(call, head, row, own->row);
            float *to = own->rows;
            for (size_t query = head; query < some.count; query += some.group, to += rank) {
                size_t at = query_at(some, query, (size_t)call->query_stride, (size_t)call->head_dim) + row;
                float factor;
                load_numbers(&factor, (const char *)call->queries + at * number_size(call->type), call->type, 1);
                add_scaled(to, factor, expansion, FP32, rank);
            }
        }
        for (size_t query = head; query < some.count; query += some.group) {
            set_lane(job, own, query, 0, own->rows + query / some.group * rank, rank);
            query_row(job, own, some, query);
            set_lane(job, own, query, rank, own->row + nope_dim, (size_t)call->head_dim - nope_dim);
        }
    }
}

static size_t head_of(struct some_queries some, size_t query) { return some.head * some.group + query % some.group; }

static void load_queries(const struct prompt_job *job, const struct prompt_scratch *own, struct some_queries some) {
    const struct prompt_attention *call = job->call;
    size_t lanes = rounded_up(some.count, WIDTH);
    memset(own->queries, 0, lanes * job->key_dim * sizeof *own->queries);
    memset(own->sums, 0, lanes * value_rows(job) * sizeof *own->sums);
    for (size_t query = 0; query < lanes; query++) { /* a sink is there before any key */
        own->total[query] = call->sinks && query < some.count;
        own->largest[query] = own->total[query] ? number(call->sinks, call->type, head_of(some, query)) : -INFINITY;
    }
    if (job->absorbs)
        absorb_queries(job, own, some);
    else
        for (size_t query = 0; query < some.count; query++) {
            query_row(job, own, some, query);
            set_lane(job, own, query, 0, own->row, job->key_dim);
        }
}

static void store_result(const struct prompt_job *job, struct some_queries some, size_t query, size_t column,
                         const float *numbers, size_t count) {
    const struct prompt_attention *call = job->call;
    size_t dim = (size_t)call->value_dim, to = query_at(some, query, (size_t)call->heads * dim, dim) + column;
    store_numbers((char *)call->output + to * number_size(call->type), call->type, numbers, count);
}

/* Sums of latents through the values' expansion. */
static void expand_results(const struct prompt_job *job, const struct prompt_scratch *own, struct some_queries some) {
    const struct prompt_attention *call = job->call;
    size_t rank = (size_t)call->rank;
    for (size_t head = 0; head < some.group; head++) {
        for (size_t query = head; query < some.count; query += some.group)
            get_lane(job, own, query, own->rows + query / some.group * rank);
        for (size_t column = 0; column < (size_t)call->value_dim; column++) {
            const float *expansion = expansion_row(call, head, (size_t)call->nope_dim + column, own->row);
            for (size_t query = head; query < some.count; query += some.group) {
                float result = dot_of(own->rows + query / some.group * rank, expansion, FP32, rank);
                store_result(job, some, query, column, &result, 1);
            }
        }
    }
}

static void store_results(const struct prompt_job *job, const struct prompt_scratch *own, struct some_queries some) {
    if (job->absorbs)
        expand_results(job, own, some);
    else
        for (size_t query = 0; query < some.count; query++) {
            get_lane(job, own, query, own->row);
            store_result(job, some, query, 0, own->row, job->value_dim);
        }
}

/* The expansion of a head as add_products takes it: keys and values in tiles of columns. */
static void load_expansion(const struct prompt_job *job, const struct prompt_scratch *own, size_t head) {
    const struct prompt_attention *call = job->call;
    size_t rank = (size_t)call->rank, nope_dim = (size_t)call->nope_dim;
    for (size_t row = 0; row < nope_dim + (size_t)call->value_dim; row++) {
        size_t column = row < nope_dim ? row : expanded_keys(job) + row - nope_dim;
        const float *numbers = expansion_row(call, head, row, own->row);
        float *to = own->expansion + column / WIDTH * WIDTH * rank + column % WIDTH;
        for (size_t i = 0; i < rank; i++)
            to[i * WIDTH] = numbers[i];
    }
}

/* out [count, columns] = latents times tiles of the expansion */
static void expand(const struct prompt_job *job, const struct prompt_scratch *own, const float *expansion,
                   size_t columns, float *out, size_t stride, size_t count) {
    size_t rank = (size_t)job->call->rank;
    for (size_t row = 0; row < count; row++)
        memset(out + row * stride, 0, columns * sizeof *out);
    for (size_t column = 0; column < columns; column += WIDTH)
        for (size_t row = 0; row < count; row += TILE_ROWS)
            add_products(out + row * stride + column, stride, own->latents + row * job->latent_stride,
                         job->latent_stride, 1, expansion + column * rank, rank);
}

static void load_block(const struct prompt_attention *call, const void *rows, size_t first, size_t count, size_t dim,
                       float *to, size_t stride) {
    const char *from = (const char *)rows + first * dim * number_size(call->type);
    for (size_t row = 0; row < count; row++, to += stride, from += dim * number_size(call->type))
        load_numbers(to, from, call->type, dim);
}

static void load_keys(const struct prompt_job *job, const struct prompt_scratch *own, size_t head, size_t first,
                      size_t count) {
    const struct prompt_attention *call = job->call;
    size_t rank = (size_t)call->rank, nope_dim = (size_t)call->nope_dim;
    size_t latent = rank + (size_t)call->head_dim - nope_dim;
    if (job->expands) {
        load_block(call, call->keys, first, count, latent, own->latents, job->latent_stride);
        expand(job, own, own->expansion, expanded_keys(job), own->keys, job->key_stride, count);
        expand(job, own, own->expansion + expanded_keys(job) * rank, expanded_values(job), own->values,
               job->value_stride, count);
        for (size_t row = 0; row < count; row++)
            memcpy(own->keys + row * job->key_stride + nope_dim, own->latents + row * job->latent_stride + rank,
                   (latent - rank) * sizeof *own->keys);
    } else {
        size_t row = head * (size_t)call->rows + first;
        load_block(call, call->keys, row, count, job->key_dim, own->keys, job->key_stride);
        if (!job->absorbs)
            load_block(call, call->values, row, count, job->value_dim, own->values, job->value_stride);
    }
}

/* A tile of queries, at positions `from` to `to`, meets the `count` keys in memory from position `begin` on. */
static void attend_tile(const struct prompt_job *job, const struct prompt_scratch *own, struct some_queries some,
                        size_t tile, int64_t begin, int64_t count) {
    const struct prompt_attention *call = job->call;
    size_t rows = value_rows(job), first = tile * WIDTH;
    int64_t start = call->start + (int64_t)some.token, window = call->window ? call->window : INT32_MAX / 2;
    int64_t from = start + (int64_t)(first / some.group);
    int64_t to = start + (int64_t)((minimum(first + WIDTH, some.count) - 1) / some.group);
    if (to - begin + 1 < count)
        count = to - begin + 1;
    if (count <= 0 || begin + count <= from - window + 1)
        return;
    float *sums = own->sums + first * rows;
    score_keys(job, own, own->queries + first * job->key_dim, (size_t)count);
    if (call->softcap > 0)
        bend(own->scores, (size_t)count, call->softcap);
    if (begin + count > from + 1 || begin <= to - window) {
        int32_t above[WIDTH], below[WIDTH];
        EACH_QUERY {
            size_t query = minimum(first + (size_t)lane, some.count - 1);
            int64_t last = start + (int64_t)(query / some.group) - begin;
            below[lane] = (int32_t)last;
            above[lane] = (int32_t)(last - window);
        }
        hide(own->scores, (size_t)count, above, below);
    }
    soften(own->scores, (size_t)count, own->largest + first, own->total + first, sums, rows);
    add_values(job, own, sums, (size_t)count);
}

static void prompt_task(const struct prompt_job *job, size_t task, const struct prompt_scratch *own) {
    const struct prompt_attention *call = job->call;
    struct some_queries some = queries_of(job, task);
    int64_t from = call->first, to = call->start + (int64_t)(some.token + (some.count - 1) / some.group) + 1;
    if (call->window && call->start + (int64_t)some.token - call->window + 1 > from)
        from = call->start + (int64_t)some.token - call->window + 1;
    load_queries(job, own, some);
    if (job->expands)
        load_expansion(job, own, some.head);
    while (from < to) {
        int64_t end = (from / KEYS + 1) * KEYS;
        end = end < to ? end : to;
        load_keys(job, own, some.head, (size_t)(from - call->first), (size_t)(end - from));
        for (size_t tile = 0; tile < ceil_div(some.count, WIDTH); tile++)
            attend_tile(job, own, some, tile, from, end - from);
        from = end;
    }
    store_results(job, own, some);
}

static void prompt_work(void *argument) {
    struct prompt_job *job = argument;
    size_t worker = __atomic_fetch_add(&job->workers, 1, __ATOMIC_RELAXED), task;
    struct prompt_scratch own;
    divide_scratch(job, job->scratch + worker * job->scratch_size, &own);
    if (job->absorbs)
        own.values = own.keys; /* they begin with the same numbers */
    /* Numbers behind the last key and column are multiplied too, for nobody: let them be numbers. */
    memset(own.keys, 0, (size_t)((char *)own.scores - (char *)own.keys));
    while (next_task(&job->tasks, job->pool, worker, &task))
        prompt_task(job, task, &own);
}

static enum status prompt_attention(const struct prompt_attention *call) {
    size_t group = (size_t)(call->heads / call->kv_heads), tokens = (size_t)call->tokens, rank = (size_t)call->rank;
    size_t seen = (size_t)(call->start - call->first) + tokens, rotated = (size_t)(call->head_dim - call->nope_dim);
    struct prompt_scratch own;
    struct thread_pool pool = limit_threads(&call->pool, (size_t)call->heads * tokens * seen);
    struct prompt_job job = {.call = call, .pool = &pool};
    job.expands = rank && call->kv_heads == call->heads;
    job.absorbs = rank && !job.expands;
    job.key_dim = job.absorbs ? rank + rotated : (size_t)call->head_dim;
    job.value_dim = job.absorbs ? rank : (size_t)call->value_dim;
    size_t most = job.expands ? SHARING : QUERIES;
    job.block_tokens = minimum(group < most ? most / group : 1, tokens);
    job.blocks = tokens ? ceil_div(tokens, job.block_tokens) : 0;
    job.tiles = ceil_div(job.block_tokens * group, WIDTH);
    job.key_stride = row_stride(job.expands ? expanded_keys(&job) + rotated : job.key_dim);
    job.value_stride = job.absorbs ? job.key_stride : row_stride(job.expands ? expanded_values(&job) : job.value_dim);
    job.latent_stride = row_stride(rank + rotated);
    job.tasks.count = job.blocks * (size_t)call->kv_heads;
    job.scratch_size = divide_scratch(&job, NULL, &own);
    job.scratch = allocate((single_threaded(&pool) ? 1 : (size_t)pool.threads) * job.scratch_size * sizeof(float));
    if (!job.scratch)
        return NO_MEMORY;
    run(&pool, prompt_work, &job);
    free(job.scratch);
    return DONE;
}

#endif
