/* The calls of a tier: one matrix, and the experts of a layer. */
#ifndef MOECLI_LAYER_H
#define MOECLI_LAYER_H

#include "activation.h"
#include "pack.h"
#include "product.h"

#define BLOCK 192 /* tokens of a unit of work: a multiple of TOKENS, so that blocks are whole tiles */

/* Quantised tokens of one input: tiles of TOKENS tokens, and a last one of those left over. */
static size_t records_bytes(size_t tokens, size_t groups) { return tokens * groups * RECORD; }

static uint8_t *record(uint8_t *records, size_t groups, size_t tokens, size_t token, size_t group, size_t *width) {
    size_t first = token / TOKENS * TOKENS;
    *width = minimum(TOKENS, tokens - first);
    return records + (first * groups + group * *width) * RECORD;
}

static void quantise_token(const struct tokens *input, size_t token, size_t groups, uint8_t *records) {
    size_t columns = (size_t)input->width, width;
    for (size_t group = 0; group < groups; group++) {
        float numbers[GROUP] = {0};
        size_t first = group * GROUP, count = first < columns ? minimum(GROUP, columns - first) : 0;
        if (count && input->type == FP32)
            memcpy(numbers, (const float *)input->numbers + token * columns + first, count * sizeof *numbers);
        else
            for (size_t i = 0; i < count; i++)
                numbers[i] = from_bf16(((const uint16_t *)input->numbers)[token * columns + first + i]);
        uint8_t *place = record(records, groups, (size_t)input->count, token, group, &width);
        quantise(numbers, place, width, token % TOKENS);
    }
}

/* One call's work: the input is quantised, then the units of two phases. One matrix is a layer without the first. */
struct job {
    const struct team *team;
    const struct tokens *input;
    const void *const *matrices; /* gate, up, down of each expert */
    struct shape inner, outer;   /* of gate and up, and of down */
    enum activation activation;
    size_t tokens, experts, input_groups, workers;
    struct units quantised, inner_units, outer_units;
    void *output;
    int32_t output_type;
    uint8_t *records, *hidden, *spaces; /* the input and all hidden numbers as records; each thread's own space */
};

/* A thread's own space: the sums of two units, and tiles as codes where there are enough tokens to share them. */
static size_t sums_bytes(size_t tokens) { return minimum(tokens, BLOCK) * UNIT * sizeof(float); }

static size_t space_bytes(size_t tokens) {
    return 2 * sums_bytes(tokens) + (tokens > TOKENS ? STRIPS * CHUNK * UNPACKED : 0);
}

static void write_row(const struct job *job, size_t place, const float *sums, size_t count) {
    if (job->output_type == FP32)
        memcpy((float *)job->output + place, sums, count * sizeof *sums);
    else
        for (size_t i = 0; i < count; i++)
            ((uint16_t *)job->output)[place + i] = to_bf16(sums[i]);
}

/* A unit is 32 rows of an expert times a block of tokens. Rows change fastest, then experts. */
struct part {
    size_t rows, valid, expert, first, tokens;
};

static size_t count_units(size_t rows, size_t experts, size_t tokens) {
    return parts(rows, UNIT) * experts * parts(tokens, BLOCK);
}

static struct part part_of(const struct job *job, size_t rows, size_t unit) {
    size_t across = parts(rows, UNIT);
    struct part part = {.rows = unit % across, .expert = unit / across % job->experts};
    part.first = unit / across / job->experts * BLOCK;
    part.tokens = minimum(BLOCK, job->tokens - part.first);
    part.valid = minimum(UNIT, rows - part.rows * UNIT);
    return part;
}

/* Hidden numbers of 32 rows, quantised at once: they are one group of columns of the next product. */
static void inner_unit(const struct job *job, size_t unit, uint8_t *space) {
    struct part part = part_of(job, job->inner.rows, unit);
    size_t across = groups_across(job->outer), width;
    size_t end = (part.rows + 1) * UNIT < job->inner.rows ? part.rows + 1 : across;
    const uint8_t *records = job->records + records_bytes(part.first, job->input_groups);
    uint8_t *hidden = job->hidden + part.expert * records_bytes(job->tokens, across);
    float *gate = (float *)space, *up = (float *)(space + sums_bytes(job->tokens));
    uint8_t *buffer = space + 2 * sums_bytes(job->tokens);
    product(job->inner, job->matrices[3 * part.expert], part.rows, records, part.tokens, gate, buffer);
    product(job->inner, job->matrices[3 * part.expert + 1], part.rows, records, part.tokens, up, buffer);
    for (size_t token = part.first; token < part.first + part.tokens; token++, gate += UNIT, up += UNIT) {
        float numbers[GROUP];
        activate(job->activation, gate, up, numbers);
        if (!job->outer_units.count) {
            write_row(job, token * job->inner.rows + part.rows * UNIT, numbers, part.valid);
            continue;
        }
        memset(numbers + part.valid, 0, (UNIT - part.valid) * sizeof *numbers);
        for (size_t group = part.rows; group < end; group++) {
            uint8_t *place = record(hidden, across, job->tokens, token, group, &width);
            quantise(numbers, place, width, token % TOKENS);
            memset(numbers, 0, sizeof numbers); /* columns of padding, after the last */
        }
    }
}

static void outer_unit(const struct job *job, size_t unit, uint8_t *space) {
    struct part part = part_of(job, job->outer.rows, unit);
    size_t across = groups_across(job->outer);
    const uint8_t *records = job->hidden + part.expert * records_bytes(job->tokens, across);
    float *sums = (float *)space;
    product(job->outer, job->matrices[3 * part.expert + 2], part.rows, records + records_bytes(part.first, across),
            part.tokens, sums, space + 2 * sums_bytes(job->tokens));
    for (size_t token = 0; token < part.tokens; token++)
        write_row(job, (part.expert * job->tokens + part.first + token) * job->outer.rows + part.rows * UNIT,
                  sums + token * UNIT, part.valid);
}

static void quantise_input(struct job *job, size_t worker) {
    size_t token;
    while (take(&job->quantised, job->team, worker, &token))
        quantise_token(job->input, token, job->input_groups, job->records);
}

static void work(void *argument) {
    struct job *job = argument;
    size_t worker = __atomic_fetch_add(&job->workers, 1, __ATOMIC_RELAXED), unit;
    uint8_t *space = job->spaces + worker * space_bytes(job->tokens);
    if (job->tokens > TOKENS) {
        quantise_input(job, worker);
        meet(job->team);
    }
    while (take(&job->inner_units, job->team, worker, &unit))
        inner_unit(job, unit, space);
    if (job->inner_units.count)
        meet(job->team);
    while (take(&job->outer_units, job->team, worker, &unit))
        outer_unit(job, unit, space);
}

static enum outcome finish_job(struct job *job) {
    size_t bytes = job->experts * parts(job->outer.rows, ROWS) * strip_bytes(job->outer);
    struct team team = enough(job->team, bytes * job->tokens);
    job->team = &team;
    size_t threads = alone(job->team) ? 1 : (size_t)job->team->threads;
    size_t input = parts(records_bytes(job->tokens, job->input_groups), LINE) * LINE;
    size_t hidden = job->inner_units.count && job->outer_units.count ? job->experts * records_bytes(job->tokens, groups_across(job->outer)) : 0;
    hidden = parts(hidden, LINE) * LINE;
    uint8_t *memory = scratch(input + hidden + threads * space_bytes(job->tokens));
    if (!memory)
        return NO_MEMORY;
    job->records = memory;
    job->hidden = hidden ? memory + input : memory;
    job->spaces = memory + input + hidden;
    job->quantised.count = job->tokens;
    if (job->tokens <= TOKENS) /* before another thread wakes up */
        quantise_input(job, 0);
    run(job->team, work, job);
    free(memory);
    return DONE;
}

static enum outcome linear(const struct linear *call) {
    const void *matrices[3] = {NULL, NULL, call->packed};
    struct shape shape = {(enum format)call->format, (size_t)call->rows, (size_t)call->input.width};
    struct job job = {.team = &call->team, .input = &call->input, .matrices = matrices, .outer = shape, .experts = 1};
    job.tokens = (size_t)call->input.count;
    job.input_groups = groups_across(shape);
    job.output = call->output;
    job.output_type = call->input.type;
    job.outer_units.count = count_units(shape.rows, 1, job.tokens);
    return finish_job(&job);
}

static enum outcome experts_job(const struct feed_forward *call, int all) {
    size_t width = (size_t)call->input.width, inner = (size_t)call->inner;
    struct job job = {.team = &call->team, .input = &call->input, .matrices = call->matrices};
    job.inner = (struct shape){(enum format)call->format, inner, width};
    job.outer = (struct shape){(enum format)call->format, width, inner};
    job.activation = (enum activation)call->activation;
    job.tokens = (size_t)call->input.count;
    job.experts = (size_t)call->experts;
    job.input_groups = groups_across(job.inner);
    job.inner_units.count = count_units(inner, job.experts, job.tokens);
    job.outer_units.count = all ? count_units(width, job.experts, job.tokens) : 0;
    job.output = call->output;
    job.output_type = FP32;
    return finish_job(&job);
}

static enum outcome feed_forward(const struct feed_forward *call) { return experts_job(call, 1); }

static enum outcome gated(const struct feed_forward *call) { return experts_job(call, 0); }

#endif
