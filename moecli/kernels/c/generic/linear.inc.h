/* Tokens times one matrix, and through the experts of a layer. */
#ifndef MOECLI_LINEAR_H
#define MOECLI_LINEAR_H

#include "activation.inc.h"
#include "pack.inc.h"
#include "matmul.inc.h"

#define BLOCK 192 /* tokens of a task: a multiple of TOKENS, so that blocks are whole tiles */

/* Quantised tokens of one input: tiles of TOKENS tokens, and a last one of those left over. */
static size_t quantised_bytes(size_t tokens, size_t groups) { return tokens * groups * GROUP_BYTES; }

static uint8_t *group_at(uint8_t *quantised, size_t groups, size_t tokens, size_t token, size_t group, size_t *width) {
    size_t first = token / TOKENS * TOKENS;
    *width = minimum(TOKENS, tokens - first);
    return quantised + (first * groups + group * *width) * GROUP_BYTES;
}

static void quantise_token(const struct tokens *input, size_t token, size_t groups, uint8_t *quantised) {
    size_t columns = (size_t)input->columns, width;
    for (size_t group = 0; group < groups; group++) {
        float numbers[GROUP] = {0};
        size_t first = group * GROUP, count = first < columns ? minimum(GROUP, columns - first) : 0;
        if (count && input->type == FP32)
            memcpy(numbers, (const float *)input->data + token * columns + first, count * sizeof *numbers);
        else
            for (size_t i = 0; i < count; i++)
                numbers[i] = from_bf16(((const uint16_t *)input->data)[token * columns + first + i]);
        uint8_t *place = group_at(quantised, groups, (size_t)input->count, token, group, &width);
        quantise(numbers, place, width, token % TOKENS);
    }
}

/* One call's work: the input is quantised, then the tasks of two phases. One matrix is a layer without the first. */
struct job {
    const struct thread_pool *pool;
    const struct tokens *input;
    const void *const *matrices; /* gate, up, down of each expert */
    struct shape gate_up, down;
    enum activation activation;
    size_t tokens, experts, input_groups, workers;
    struct tasks quantise_tasks, gate_up_tasks, down_tasks;
    void *output;
    int32_t output_type;
    uint8_t *quantised, *hidden, *scratch; /* the input and what is between, quantised; each thread's own memory */
};

/* A thread's own memory: the sums of two tasks, and tiles as codes where there are enough tokens to share them. */
static size_t sums_bytes(size_t tokens) { return minimum(tokens, BLOCK) * TASK_ROWS * sizeof(float); }

static size_t scratch_bytes(size_t tokens) {
    return 2 * sums_bytes(tokens) + (tokens > TOKENS ? PANELS * CHUNK * UNPACKED : 0);
}

static void write_row(const struct job *job, size_t place, const float *sums, size_t count) {
    if (job->output_type == FP32)
        memcpy((float *)job->output + place, sums, count * sizeof *sums);
    else
        for (size_t i = 0; i < count; i++)
            ((uint16_t *)job->output)[place + i] = to_bf16(sums[i]);
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

/* Hidden numbers of 32 rows, quantised at once: they are one group of columns of the next product. */
static void gate_up_task(const struct job *job, size_t index, uint8_t *scratch) {
    struct task task = task_at(job, job->gate_up.rows, index);
    size_t across = groups_across(job->down), width;
    size_t end = (task.rows + 1) * TASK_ROWS < job->gate_up.rows ? task.rows + 1 : across;
    const uint8_t *quantised = job->quantised + quantised_bytes(task.first, job->input_groups);
    uint8_t *hidden = job->hidden + task.expert * quantised_bytes(job->tokens, across);
    float *gate = (float *)scratch, *up = (float *)(scratch + sums_bytes(job->tokens));
    uint8_t *buffer = scratch + 2 * sums_bytes(job->tokens);
    product(job->gate_up, job->matrices[3 * task.expert], task.rows, quantised, task.tokens, gate, buffer);
    product(job->gate_up, job->matrices[3 * task.expert + 1], task.rows, quantised, task.tokens, up, buffer);
    for (size_t token = task.first; token < task.first + task.tokens; token++, gate += TASK_ROWS, up += TASK_ROWS) {
        float numbers[GROUP];
        activate(job->activation, gate, up, numbers);
        if (!job->down_tasks.count) {
            write_row(job, token * job->gate_up.rows + task.rows * TASK_ROWS, numbers, task.valid);
            continue;
        }
        memset(numbers + task.valid, 0, (TASK_ROWS - task.valid) * sizeof *numbers);
        for (size_t group = task.rows; group < end; group++) {
            uint8_t *place = group_at(hidden, across, job->tokens, token, group, &width);
            quantise(numbers, place, width, token % TOKENS);
            memset(numbers, 0, sizeof numbers); /* columns of padding, after the last */
        }
    }
}

static void down_task(const struct job *job, size_t index, uint8_t *scratch) {
    struct task task = task_at(job, job->down.rows, index);
    size_t across = groups_across(job->down);
    const uint8_t *quantised = job->hidden + task.expert * quantised_bytes(job->tokens, across);
    float *sums = (float *)scratch;
    product(job->down, job->matrices[3 * task.expert + 2], task.rows, quantised + quantised_bytes(task.first, across),
            task.tokens, sums, scratch + 2 * sums_bytes(job->tokens));
    for (size_t token = 0; token < task.tokens; token++)
        write_row(job, (task.expert * job->tokens + task.first + token) * job->down.rows + task.rows * TASK_ROWS,
                  sums + token * TASK_ROWS, task.valid);
}

static void quantise_input(struct job *job, size_t worker) {
    size_t token;
    while (next_task(&job->quantise_tasks, job->pool, worker, &token))
        quantise_token(job->input, token, job->input_groups, job->quantised);
}

static void work(void *argument) {
    struct job *job = argument;
    size_t worker = __atomic_fetch_add(&job->workers, 1, __ATOMIC_RELAXED), task;
    uint8_t *scratch = job->scratch + worker * scratch_bytes(job->tokens);
    if (job->tokens > TOKENS) {
        quantise_input(job, worker);
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
    size_t bytes = job->experts * ceil_div(job->down.rows, PANEL_ROWS) * panel_bytes(job->down);
    struct thread_pool pool = limit_threads(job->pool, bytes * job->tokens);
    job->pool = &pool;
    size_t threads = single_threaded(job->pool) ? 1 : (size_t)job->pool->threads;
    size_t input = ceil_div(quantised_bytes(job->tokens, job->input_groups), LINE) * LINE;
    size_t hidden = job->experts * quantised_bytes(job->tokens, groups_across(job->down));
    hidden = job->gate_up_tasks.count && job->down_tasks.count ? ceil_div(hidden, LINE) * LINE : 0;
    uint8_t *memory = allocate(input + hidden + threads * scratch_bytes(job->tokens));
    if (!memory)
        return NO_MEMORY;
    job->quantised = memory;
    job->hidden = hidden ? memory + input : memory;
    job->scratch = memory + input + hidden;
    job->quantise_tasks.count = job->tokens;
    if (job->tokens <= TOKENS) /* before another thread wakes up */
        quantise_input(job, 0);
    run(job->pool, work, job);
    free(memory);
    return DONE;
}

static enum status linear(const struct linear *call) {
    const void *matrices[3] = {NULL, NULL, call->packed};
    struct shape shape = {(enum format)call->format, (size_t)call->rows, (size_t)call->input.columns};
    struct job job = {.pool = &call->pool, .input = &call->input, .matrices = matrices, .down = shape, .experts = 1};
    job.tokens = (size_t)call->input.count;
    job.input_groups = groups_across(shape);
    job.output = call->output;
    job.output_type = call->input.type;
    job.down_tasks.count = count_tasks(shape.rows, 1, job.tokens);
    return run_job(&job);
}

static enum status experts_job(const struct feed_forward *call, int all) {
    size_t hidden_size = (size_t)call->input.columns, intermediate_size = (size_t)call->intermediate_size;
    struct job job = {.pool = &call->pool, .input = &call->input, .matrices = call->matrices};
    job.gate_up = (struct shape){(enum format)call->format, intermediate_size, hidden_size};
    job.down = (struct shape){(enum format)call->format, hidden_size, intermediate_size};
    job.activation = (enum activation)call->activation;
    job.tokens = (size_t)call->input.count;
    job.experts = (size_t)call->experts;
    job.input_groups = groups_across(job.gate_up);
    job.gate_up_tasks.count = count_tasks(intermediate_size, job.experts, job.tokens);
    job.down_tasks.count = all ? count_tasks(hidden_size, job.experts, job.tokens) : 0;
    job.output = call->output;
    job.output_type = FP32;
    return run_job(&job);
}

static enum status feed_forward(const struct feed_forward *call) { return experts_job(call, 1); }

static enum status gated(const struct feed_forward *call) { return experts_job(call, 0); }

#endif
