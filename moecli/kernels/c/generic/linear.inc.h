/* Tokens times one matrix, and through the experts of a layer. */
#ifndef MOECLI_LINEAR_H
#define MOECLI_LINEAR_H

#include "activation.inc.h"
#include "row_major.inc.h"
#include "vectors.inc.h"

#define BLOCK 192 /* tokens of a task: a multiple of TOKENS and of BUFFER_TOKENS, so that blocks are whole tiles */

/* Tokens as a matrix takes them. For one in tiles they are quantised, in tiles of TOKENS tokens and a last one of those
   left over; for rows they are rows of floats. */
static size_t input_groups(struct shape matrix) {
    return is_row_major(matrix.format) ? ceil_div(matrix.columns, GROUP) : groups_across(matrix);
}

static size_t input_bytes(struct shape matrix, size_t tokens) {
    if (is_row_major(matrix.format))
        return tokens * token_stride(matrix.columns) * sizeof(float);
    return tokens * groups_across(matrix) * GROUP_BYTES;
}

static void put_group(struct shape matrix, uint8_t *input, size_t tokens, size_t token, size_t group,
                      const float *numbers) {
    size_t first = token / TOKENS * TOKENS, width = minimum(TOKENS, tokens - first);
    if (is_row_major(matrix.format))
        memcpy((float *)input + token * token_stride(matrix.columns) + group * GROUP, numbers, GROUP * sizeof *numbers);
    else
        quantise(numbers, input + (first * groups_across(matrix) + group * width) * GROUP_BYTES, width, token % TOKENS);
}

static void put_token(struct shape matrix, const struct tokens *from, size_t token, uint8_t *input) {
    size_t columns = (size_t)from->columns, groups = input_groups(matrix);
    const char *row = (const char *)from->data + token * columns * number_size(from->type);
    for (size_t group = 0; group < groups; group++) {
        float numbers[GROUP] = {0};
        size_t first = group * GROUP, count = first < columns ? minimum(GROUP, columns - first) : 0;
        load_numbers(numbers, row + first * number_size(from->type), from->type, count);
        put_group(matrix, input, (size_t)from->count, token, group, numbers);
    }
}

static size_t matrix_bytes(struct shape shape) {
    if (is_row_major(shape.format))
        return code_bytes((int)shape.format, shape.rows * shape.columns);
    return ceil_div(shape.rows, PANEL_ROWS) * panel_bytes(shape);
}

/* One call's work: the input is converted, then the tasks of two phases. One matrix is a layer without the first. */
struct job {
    const struct thread_pool *pool;
    const struct tokens *input;
    const void *const *matrices, *const *biases; /* of gate, up, down of each expert; biases may be NULL */
    int32_t bias_type;
    struct shape gate_up, down;
    size_t intermediate_size, up_row; /* rows of gate, and where those of up begin in their matrix */
    enum activation activation;
    size_t tokens, experts, workers;
    struct tasks input_tasks, gate_up_tasks, down_tasks;
    void *output;
    int32_t output_type;
    uint8_t *converted, *hidden, *scratch; /* the input and what is between as matrices take it; each thread's memory */
};

static struct shape first_matrix(const struct job *job) { return job->gate_up_tasks.count ? job->gate_up : job->down; }

/* A thread's own memory: the sums of two tasks, and weights in a buffer where there are enough tokens to share them. */
static size_t sums_bytes(size_t tokens) { return minimum(tokens, BLOCK) * TASK_ROWS * sizeof(float); }

static size_t scratch_bytes(const struct job *job) {
    size_t buffer = job->tokens > TOKENS ? PANELS * PANEL_CHUNK : 0;
    if (is_row_major(job->down.format)) {
        int alone = job->tokens == 1 && meets_alone(first_matrix(job)) && meets_alone(job->down);
        buffer = alone ? 0 : BUFFERED_ROWS * SPAN_STRIDE * sizeof(float);
    }
    return 2 * sums_bytes(job->tokens) + buffer;
}

static void write_row(const struct job *job, size_t place, const float *sums, size_t count) {
    store_numbers((char *)job->output + place * number_size(job->output_type), job->output_type, sums, count);
}

static void product(struct shape shape, const void *matrix, size_t row, size_t count, const uint8_t *input,
                    size_t tokens, float *sums, uint8_t *buffer) {
    if (is_row_major(shape.format))
        row_major_product(shape, matrix, row, count, (const float *)input, tokens, sums, (float *)buffer);
    else
        tiled_product(shape, matrix, row, count, input, tokens, sums, buffer);
}

/* A task is 32 rows of an expert times a block of tokens. Rows change fastest, then experts. */
struct task {
    size_t rows, valid, expert, first, tokens;
};

static size_t count_tasks(size_t rows, size_t experts, size_t tokens) {
    return ceil_div(rows, TASK_ROWS) * experts * ceil_div(tokens, BLOCK);
}

static struct task task_at(const struct job *job, size_t rows, size_t index) {
    size_t across = ceil_div(rows, TASK_ROWS);
    struct task task = {.rows = index % across, .expert = index / across % job->experts};
    task.first = index / across / job->experts * BLOCK;
    task.tokens = minimum(BLOCK, job->tokens - task.first);
    task.valid = minimum(TASK_ROWS, rows - task.rows * TASK_ROWS);
    return task;
}

/* Hidden numbers of 32 rows, converted at once: they are one group of columns of the next product. */
static void add_bias(const struct job *job, size_t matrix, size_t row, size_t count, float *sums, size_t tokens) {
    if (!job->biases || !job->biases[matrix])
        return;
    const char *bias = (const char *)job->biases[matrix] + row * number_size(job->bias_type);
    for (size_t token = 0; token < tokens; token++)
        add_to(sums + token * TASK_ROWS, 1, bias, job->bias_type, count);
}

static void gate_up_task(const struct job *job, size_t index, uint8_t *scratch) {
    struct task task = task_at(job, job->intermediate_size, index);
    size_t row = task.rows * TASK_ROWS;
    size_t end = row + TASK_ROWS < job->intermediate_size ? task.rows + 1 : input_groups(job->down);
    const uint8_t *input = job->converted + input_bytes(job->gate_up, task.first);
    const void *const *matrices = job->matrices + 3 * task.expert;
    uint8_t *hidden = job->hidden + task.expert * input_bytes(job->down, job->tokens);
    float *gate = (float *)scratch, *up = (float *)(scratch + sums_bytes(job->tokens));
    uint8_t *buffer = scratch + 2 * sums_bytes(job->tokens);
    int is_gated = matrices[0] != NULL;
    product(job->gate_up, matrices[is_gated ? 0 : 1], row, task.valid, input, task.tokens, gate, buffer);
    add_bias(job, 3 * task.expert + !is_gated, row, task.valid, gate, task.tokens);
    if (is_gated) {
        product(job->gate_up, matrices[1], job->up_row + row, task.valid, input, task.tokens, up, buffer);
        add_bias(job, 3 * task.expert + 1, row, task.valid, up, task.tokens);
    }
    for (size_t i = 0; !is_gated && i < task.tokens * TASK_ROWS; i++)
        up[i] = 1; /* activation(up x) * 1 */
    for (size_t token = task.first; token < task.first + task.tokens; token++, gate += TASK_ROWS, up += TASK_ROWS) {
        float numbers[GROUP];
        activate(job->activation, gate, up, numbers);
        if (!job->down_tasks.count) {
            write_row(job, token * job->intermediate_size + row, numbers, task.valid);
            continue;
        }
        memset(numbers + task.valid, 0, (TASK_ROWS - task.valid) * sizeof *numbers);
        for (size_t group = task.rows; group < end; group++) {
            put_group(job->down, hidden, job->tokens, token, group, numbers);
            memset(numbers, 0, sizeof numbers); /* columns of padding, after the last */
        }
    }
}

static void down_task(const struct job *job, size_t index, uint8_t *scratch) {
    struct task task = task_at(job, job->down.rows, index);
    const uint8_t *input = job->hidden + task.expert * input_bytes(job->down, job->tokens);
    float *sums = (float *)scratch;
    product(job->down, job->matrices[3 * task.expert + 2], task.rows * TASK_ROWS, task.valid,
            input + input_bytes(job->down, task.first), task.tokens, sums, scratch + 2 * sums_bytes(job->tokens));
    add_bias(job, 3 * task.expert + 2, task.rows * TASK_ROWS, task.valid, sums, task.tokens);
    for (size_t token = 0; token < task.tokens; token++)
        write_row(job, (task.expert * job->tokens + task.first + token) * job->down.rows + task.rows * TASK_ROWS,
                  sums + token * TASK_ROWS, task.valid);
}

static void convert_input(struct job *job, size_t worker) {
    size_t token;
    while (next_task(&job->input_tasks, job->pool, worker, &token))
        put_token(first_matrix(job), job->input, token, job->converted);
}

static void work(void *argument) {
    struct job *job = argument;
    size_t worker = __atomic_fetch_add(&job->workers, 1, __ATOMIC_RELAXED), task;
    uint8_t *scratch = job->scratch + worker * scratch_bytes(job);
    if (job->tokens > TOKENS) {
        convert_input(job, worker);
        barrier(job->pool);
    }
    while (next_task(&job->gate_up_tasks, job->pool, worker, &task))
        gate_up_task(job, task, scratch);
    if (job->gate_up_tasks.count)
        barrier(job->pool);
    while (next_task(&job->down_tasks, job->pool, worker, &task))
        down_task(job, task, scratch);
}

static enum status run_job(struct job *job) {
    size_t bytes = job->experts * matrix_bytes(job->down);
    struct thread_pool pool = limit_threads(job->pool, bytes * job->tokens);
    job->pool = &pool;
    size_t threads = single_threaded(job->pool) ? 1 : (size_t)job->pool->threads;
    size_t input = ceil_div(input_bytes(first_matrix(job), job->tokens), LINE) * LINE;
    size_t hidden = job->experts * input_bytes(job->down, job->tokens);
    hidden = job->gate_up_tasks.count && job->down_tasks.count ? ceil_div(hidden, LINE) * LINE : 0;
    uint8_t *memory = allocate(input + hidden + threads * scratch_bytes(job));
    if (!memory)
        return NO_MEMORY;
    job->converted = memory;
    job->hidden = hidden ? memory + input : memory;
    job->scratch = memory + input + hidden;
    job->input_tasks.count = job->tokens;
    if (job->tokens <= TOKENS) /* before another thread wakes up */
        convert_input(job, 0);
    run(job->pool, work, job);
    free(memory);
    return DONE;
}

static enum status linear(const struct linear *call) {
    const void *matrices[3] = {NULL, NULL, call->packed};
    struct shape shape = {(enum format)call->format, (size_t)call->rows, (size_t)call->input.columns};
    struct job job = {.pool = &call->pool, .input = &call->input, .matrices = matrices, .down = shape, .experts = 1};
    job.tokens = (size_t)call->input.count;
    job.output = call->output;
    job.output_type = call->input.type;
    job.down_tasks.count = count_tasks(shape.rows, 1, job.tokens);
    return run_job(&job);
}

static enum status experts_job(const struct feed_forward *call, int all) {
    size_t hidden_size = (size_t)call->input.columns, intermediate_size = (size_t)call->intermediate_size;
    struct job job = {.pool = &call->pool, .input = &call->input, .matrices = call->matrices};
    job.biases = call->biases;
    job.bias_type = call->bias_type;
    job.intermediate_size = intermediate_size;
    job.up_row = call->stacked ? intermediate_size : 0;
    job.gate_up = (struct shape){(enum format)call->format, intermediate_size + job.up_row, hidden_size};
    job.down = (struct shape){(enum format)call->format, hidden_size, intermediate_size};
    job.activation = (enum activation)call->activation;
    job.tokens = (size_t)call->input.count;
    job.experts = (size_t)call->experts;
    job.gate_up_tasks.count = count_tasks(intermediate_size, job.experts, job.tokens);
    job.down_tasks.count = all ? count_tasks(hidden_size, job.experts, job.tokens) : 0;
    job.output = call->output;
    job.output_type = FP32;
    return run_job(&job);
}

static enum status feed_forward(const struct feed_forward *call) { return experts_job(call, 1); }

static enum status gated(const struct feed_forward *call) { return experts_job(call, 0); }

#endif
