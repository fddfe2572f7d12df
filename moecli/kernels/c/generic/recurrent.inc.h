/* Mixers that keep a state of fixed size instead of keys and values: convolution, recurrence, gate.

   A text goes through them token by token, so that what a token becomes depends on no cut of its text, and as many
   tokens as there are cost one reading of the state. */
#ifndef MOECLI_RECURRENT_H
#define MOECLI_RECURRENT_H

#include "sublayer.inc.h"

#define STATE_TILE 32 /* columns of a head's state that lie together: [heads, tiles, state_dim, STATE_TILE] */
#define EACH_STATE for (size_t i = 0; i < STATE_TILE; i++)

/* Tokens of one text: those that were kept of the last step come first, as `operands` they left then. */
struct recurrent_job {
    const struct recurrent *call;
    const struct history *history;
    const struct thread_pool *pool;
    const float *projected, *gates;
    float *rows;     /* [kernel - 1 + tokens, channels], the last of the past first */
    float *operands; /* [kept + tokens, operand_width] */
    float *opening;  /* of CHANNEL_DELTA, what opens the gate: [tokens, heads * head_dim] */
    float *spare;    /* a state for tokens that may be forgotten */
    float *mixed;    /* [tokens, heads * head_dim] */
    size_t tokens, kept, workers;
    void (*task)(const struct recurrent_job *, size_t);
    struct tasks tasks;
};

static size_t inner_width(const struct recurrent *call) { return (size_t)(call->heads * call->head_dim); }

static size_t shared_width(const struct recurrent *call) { return (size_t)(call->groups * call->state_dim); }

/* What the convolution sees of a token. */
static size_t channels_of(const struct recurrent *call) {
    int whole = call->kind == SHORT_CONVOLUTION || call->kind == MAMBA;
    return inner_width(call) + (whole ? 0 : 2 * shared_width(call));
}

static size_t decays_of(const struct recurrent *call) {
    return (size_t)(call->kind == CHANNEL_DELTA ? call->heads * call->state_dim : call->heads);
}

/* What the recurrence sees of a token: with heads the convolved channels, then decay (of CHANNEL_DELTA one of each row)
   and rate of each; of Mamba x and step of each channel, then what writes the state and what reads it. */
static size_t operand_width(const struct recurrent *call) {
    if (call->kind == SHORT_CONVOLUTION)
        return 0;
    if (call->kind == MAMBA)
        return 2 * (inner_width(call) + (size_t)call->state_dim);
    return channels_of(call) + decays_of(call) + (size_t)call->heads;
}

/* What the input projection makes of a token. */
static size_t projection_width(const struct recurrent *call) {
    switch ((enum recurrence)call->kind) {
    case SHORT_CONVOLUTION: return 3 * inner_width(call);
    case MAMBA: return 2 * inner_width(call);
    case DELTA_NET:
    case LIGHTNING: return channels_of(call) + inner_width(call);
    case MAMBA2: return inner_width(call) + channels_of(call) + (size_t)call->heads;
    case CHANNEL_DELTA: return channels_of(call) + (call->rank ? 0 : decays_of(call) + inner_width(call));
    }
    return 0;
}

/* What the gates' projection makes of a token. */
static size_t gates_width(const struct recurrent *call) {
    if (!call->gates)
        return 0;
    return (size_t)(call->kind == CHANNEL_DELTA ? call->heads + 2 * call->rank : 2 * call->heads);
}

static size_t tiles_of(const struct recurrent *call) {
    return call->kind == MAMBA ? ceil_div(inner_width(call), STATE_TILE)
                               : (size_t)call->heads * ceil_div((size_t)call->head_dim, STATE_TILE);
}

static float softplus(float x) { return x > 20 ? x : log1pf(exponential(x)); }

static float logistic(float x) { return 1 / (1 + exponential(-x)); }

/* Of one channel after the other the last `kernel` tokens. */
static void convolve(const struct recurrent *call, const float *rows, float *restrict out) {
    size_t channels = channels_of(call);
    for (size_t i = 0; i < channels; i++)
        out[i] = !call->conv ? rows[i] : call->conv_bias ? call->conv_bias[i] : 0;
    for (size_t back = 0; call->conv && back < (size_t)call->kernel; back++) {
        const float *restrict weights = call->conv + back * channels, *restrict row = rows + back * channels;
        for (size_t i = 0; i < channels; i++)
            out[i] = fmaf(weights[i], row[i], out[i]);
    }
    for (size_t i = 0; call->kind != SHORT_CONVOLUTION && i < channels; i++)
        out[i] = silu(out[i]);
}

/* Heads of queries or keys to length 1, times a factor. */
static void scale_to_one(float *numbers, size_t heads, size_t dim, float factor) {
    for (float *head = numbers; head < numbers + heads * dim; head += dim) {
        float scale = factor / sqrtf(dot_product(head, head, FP32, dim) + 1e-6f);
        for (size_t i = 0; i < dim; i++)
            head[i] *= scale;
    }
}

/* A token's convolution, and the operands of its recurrence as far as they need no other product. */
static void prepare(const struct recurrent_job *job, size_t token) {
    const struct recurrent *call = job->call;
    size_t channels = channels_of(call), heads = (size_t)call->heads, dim = (size_t)call->state_dim;
    size_t inner = inner_width(call), shared = shared_width(call);
    const float *rows = job->rows + token * channels;
    const float *projected = job->projected + token * projection_width(call);
    if (call->kind == SHORT_CONVOLUTION) {
        float *mixed = job->mixed + token * inner;
        convolve(call, rows, mixed);
        for (size_t i = 0; i < inner; i++)
            mixed[i] *= projected[inner + i];
        return;
    }
    float *operands = job->operands + (job->kept + token) * operand_width(call);
    convolve(call, rows, operands);
    float *decays = operands + channels, *rates = decays + decays_of(call);
    if (call->kind == DELTA_NET || call->kind == CHANNEL_DELTA) {
        const float *gates = job->gates + token * gates_width(call);
        scale_to_one(operands, (size_t)call->groups, dim, 1 / sqrtf((float)dim));
        scale_to_one(operands + shared, (size_t)call->groups, dim, 1);
        for (size_t head = 0; head < heads; head++)
            rates[head] = logistic(gates[head]);
        for (size_t head = 0; call->kind == DELTA_NET && head < heads; head++)
            decays[head] = exponential(call->decay[head] * softplus(gates[heads + head] + call->step_bias[head]));
    }
    for (size_t head = 0; call->kind == LIGHTNING && head < heads; head++)
        decays[head] = exponential(call->decay[head]), rates[head] = 1;
    if (call->kind == MAMBA2)
        for (size_t head = 0; head < heads; head++) {
            rates[head] = softplus(projected[inner + channels + head] + call->step_bias[head]);
            decays[head] = exponential(call->decay[head] * rates[head]);
        }
}

/* Mamba's steps, writing and reading maps, which are products of what was convolved. */
static enum status select_steps(const struct recurrent_job *job) {
    const struct recurrent *call = job->call;
    size_t inner = inner_width(call), dim = (size_t)call->state_dim, rank = (size_t)call->rank;
    size_t width = operand_width(call), selected = rank + 2 * dim, tokens = job->tokens;
    struct sublayer sublayer = call->sublayer;
    sublayer.tokens = (int64_t)tokens;
    float *inputs = allocate(tokens * (2 * inner + selected + rank) * sizeof *inputs);
    if (!inputs)
        return NO_MEMORY;
    float *steps = inputs + tokens * inner, *selections = steps + tokens * inner;
    float *low = selections + tokens * selected;
    for (size_t token = 0; token < tokens; token++)
        memcpy(inputs + token * inner, job->operands + (job->kept + token) * width, inner * sizeof *inputs);
    enum status status =
        multiply(&sublayer, PLAIN + sublayer.type, call->select, NULL, inputs, inner, selections, selected);
    for (size_t token = 0; token < tokens && status == DONE; token++) {
        float *selection = selections + token * selected, *maps = job->operands + (job->kept + token) * width;
        maps += 2 * inner;
        normalise(RMS, call->norm_eps, call->step_norm, FP32, selection, rank);
        normalise(RMS, call->norm_eps, call->write_norm, FP32, selection + rank, dim);
        normalise(RMS, call->norm_eps, call->read_norm, FP32, selection + rank + dim, dim);
        memcpy(low + token * rank, selection, rank * sizeof *low);
        memcpy(maps, selection + rank, 2 * dim * sizeof *maps);
    }
    if (status == DONE)
        status = multiply(&sublayer, PLAIN + sublayer.type, call->step, NULL, low, rank, steps, inner);
    for (size_t token = 0; token < tokens && status == DONE; token++)
        for (size_t i = 0; i < inner; i++)
            job->operands[(job->kept + token) * width + inner + i] =
                softplus(steps[token * inner + i] + call->step_bias[i]);
    free(inputs);
    return status;
}

/* What is left of each row of a state, of the projections of its decays. */
static void decay_rows(const struct recurrent *call, const float *steps, float *decays) {
    for (size_t i = 0; i < decays_of(call); i++) {
        float rate = call->decay[i / (size_t)call->state_dim], step = steps[i] + call->step_bias[i];
        decays[i] = exponential(call->floor != 0 ? call->floor * logistic(-rate * step) : rate * softplus(step));
    }
}

/* Decays, one of each row of a state, and what opens the gate: projected, or each through a narrow projection. */
static enum status widen(const struct recurrent_job *job) {
    const struct recurrent *call = job->call;
    size_t inner = inner_width(call), rank = (size_t)call->rank, decays = decays_of(call), gates = gates_width(call);
    size_t tokens = job->tokens, width = operand_width(call), channels = channels_of(call);
    float *operands = job->operands + job->kept * width + channels;
    for (size_t token = 0; !rank && token < tokens; token++) {
        const float *projected = job->projected + token * projection_width(call) + channels;
        decay_rows(call, projected, operands + token * width);
        memcpy(job->opening + token * inner, projected + decays, inner * sizeof *projected);
    }
    if (!rank)
        return DONE;
    struct sublayer sublayer = call->sublayer;
    sublayer.tokens = (int64_t)tokens;
    float *low = allocate(tokens * (rank + decays) * sizeof *low), *steps = low + tokens * rank;
    if (!low)
        return NO_MEMORY;
    for (size_t token = 0; token < tokens; token++)
        memcpy(low + token * rank, job->gates + token * gates + call->heads, rank * sizeof *low);
    enum status status = multiply(&sublayer, PLAIN + sublayer.type, call->step, NULL, low, rank, steps, decays);
    for (size_t token = 0; token < tokens && status == DONE; token++) {
        decay_rows(call, steps + token * decays, operands + token * width);
        memcpy(low + token * rank, job->gates + token * gates + (size_t)call->heads + rank, rank * sizeof *low);
    }
    if (status == DONE)
        status = multiply(&sublayer, PLAIN + sublayer.type, call->gate, NULL, low, rank, job->opening, inner);
    free(low);
    return status;
}

/* state [dim, STATE_TILE]: what it holds decays, is corrected or added to along the key, and read along the query
   (gated delta rule, arXiv 2412.06464; Mamba-2, 2405.21060). `apart`: 1 where each row has a decay of its own (Kimi
   Delta Attention, 2510.26692), 0 where all share one. */
INLINE void advance(int corrects, size_t apart, float *restrict state, size_t dim, const float *query, const float *key,
                    const float *values, const float *decays, float rate, float *restrict out) {
    float written[STATE_TILE];
    if (corrects) {
        float known[STATE_TILE] = {0};
        for (size_t row = 0; row < dim; row++)
            EACH_STATE {
                float kept = state[row * STATE_TILE + i] * decays[row * apart];
                state[row * STATE_TILE + i] = kept;
                known[i] = fmaf(key[row], kept, known[i]);
            }
        EACH_STATE written[i] = (values[i] - known[i]) * rate;
    } else
        EACH_STATE written[i] = values[i] * rate;
    float sums[STATE_TILE] = {0};
    for (size_t row = 0; row < dim; row++)
        EACH_STATE {
            float kept = state[row * STATE_TILE + i];
            kept = fmaf(key[row], written[i], corrects ? kept : kept * decays[row * apart]);
            state[row * STATE_TILE + i] = kept;
            sums[i] = fmaf(query[row], kept, sums[i]);
        }
    EACH_STATE out[i] = sums[i];
}

/* The same where each channel has a decay for each row (Mamba, arXiv 2312.00752). */
INLINE void advance_channels(float *restrict state, size_t dim, const float *rates, const float *steps,
                             const float *values, const float *write, const float *read, float *restrict out) {
    float written[STATE_TILE], sums[STATE_TILE] = {0};
    EACH_STATE written[i] = values[i] * steps[i];
    for (size_t row = 0; row < dim; row++)
        EACH_STATE {
            float decay = exponential(rates[row * STATE_TILE + i] * steps[i]);
            float kept = fmaf(write[row], written[i], state[row * STATE_TILE + i] * decay);
            state[row * STATE_TILE + i] = kept;
            sums[i] = fmaf(read[row], kept, sums[i]);
        }
    EACH_STATE out[i] = sums[i];
}

/* All tokens through some columns of a head's state. */
static void scan(const struct recurrent_job *job, size_t task) {
    const struct recurrent *call = job->call;
    size_t dim = (size_t)call->state_dim, inner = inner_width(call), width = operand_width(call);
    size_t length = call->kind == MAMBA ? inner : (size_t)call->head_dim, tiles = ceil_div(length, STATE_TILE);
    size_t head = task / tiles, from = task % tiles * STATE_TILE, some = minimum(STATE_TILE, length - from);
    size_t group = call->kind == MAMBA ? 0 : head / (size_t)(call->heads / call->groups);
    size_t column = head * length + from, shared = shared_width(call), channels = channels_of(call);
    size_t settled = job->kept + (job->history->commits ? job->tokens : 0);
    float *state = job->history->state + task * dim * STATE_TILE;
    for (size_t token = 0; token < job->kept + job->tokens; token++) {
        const float *operands = job->operands + token * width;
        float values[STATE_TILE] = {0}, steps[STATE_TILE] = {0}, out[STATE_TILE];
        if (token == settled) {
            float *spare = job->spare + task * dim * STATE_TILE;
            memcpy(spare, state, dim * STATE_TILE * sizeof *state);
            state = spare;
        }
        if (call->kind == MAMBA) {
            memcpy(values, operands + column, some * sizeof *values);
            memcpy(steps, operands + inner + column, some * sizeof *steps);
            advance_channels(state, dim, call->decay + task * dim * STATE_TILE, steps, values, operands + 2 * inner,
                             operands + 2 * inner + dim, out);
        } else {
            const float *decays = operands + channels, *first = operands + group * dim, *second = first + shared;
            float rate = decays[decays_of(call) + head];
            if (call->kind == MAMBA2) {
                memcpy(values, operands + column, some * sizeof *values);
                advance(0, 0, state, dim, second + inner, first + inner, values, decays + head, rate, out);
            } else {
                memcpy(values, operands + 2 * shared + column, some * sizeof *values);
                if (call->kind == CHANNEL_DELTA)
                    advance(1, 1, state, dim, first, second, values, decays + head * dim, rate, out);
                else if (call->kind == LIGHTNING)
                    advance(0, 0, state, dim, first, second, values, decays + head, rate, out);
                else
                    advance(1, 0, state, dim, first, second, values, decays + head, rate, out);
            }
        }
        if (token < job->kept)
            continue;
        float *mixed = job->mixed + (token - job->kept) * inner + column;
        for (size_t i = 0; i < some; i++)
            mixed[i] =
                call->skip ? fmaf(call->skip[call->kind == MAMBA ? column + i : head], values[i], out[i]) : out[i];
    }
}

/* A token's gate, and the norm before or after it. */
static void finish(const struct recurrent_job *job, size_t token) {
    const struct recurrent *call = job->call;
    enum recurrence kind = (enum recurrence)call->kind;
    size_t inner = inner_width(call), groups = (size_t)(kind == MAMBA2 ? call->groups : call->heads);
    size_t parts = kind == LIGHTNING ? 1 : groups, size = inner / parts;
    int mambas = kind == MAMBA || kind == MAMBA2;
    const float *gate = job->projected + token * projection_width(call);
    float *mixed = job->mixed + token * inner;
    gate = kind == CHANNEL_DELTA ? job->opening + token * inner
                                 : gate + (kind == MAMBA ? inner
                                           : mambas      ? 0
                                                         : channels_of(call));
    for (size_t part = 0; !mambas && part < parts; part++)
        normalise(RMS, call->norm_eps, call->norm, FP32, mixed + part * size, size);
    for (size_t i = 0; i < inner; i++)
        mixed[i] *= kind == CHANNEL_DELTA || kind == LIGHTNING ? logistic(gate[i]) : silu(gate[i]);
    for (size_t part = 0; kind == MAMBA2 && part < parts; part++)
        normalise(RMS, call->norm_eps, call->norm + part * size, FP32, mixed + part * size, size);
}

static void do_tasks(void *argument) {
    struct recurrent_job *job = argument;
    size_t worker = __atomic_fetch_add(&job->workers, 1, __ATOMIC_RELAXED), task;
    while (next_task(&job->tasks, job->pool, worker, &task))
        job->task(job, task);
}

static void do_all(struct recurrent_job *job, void (*task)(const struct recurrent_job *, size_t), size_t count) {
    job->task = task, job->workers = 0;
    job->tasks = (struct tasks){.count = count};
    if (count == 1)
        task(job, 0); /* of one token: sooner done than another thread is awake */
    else
        run(job->pool, do_tasks, job);
}

/* The past of the convolution and the new tokens' channels side by side, and the past that they leave. */
static void move_rows(const struct recurrent_job *job) {
    const struct recurrent *call = job->call;
    size_t channels = channels_of(call), past = (size_t)call->kernel - 1, inner = inner_width(call);
    size_t bytes = channels * sizeof *job->rows, from = call->kind == MAMBA2 ? inner : 0;
    float *history = job->history->rows, *rows = job->rows + past * channels;
    memmove(history, history + job->kept * channels, past * bytes);
    memcpy(job->rows, history, past * bytes);
    for (size_t token = 0; token < job->tokens; token++, rows += channels) {
        const float *projected = job->projected + token * projection_width(call) + from;
        if (call->kind == SHORT_CONVOLUTION)
            for (size_t i = 0; i < inner; i++)
                rows[i] = projected[i] * projected[2 * inner + i];
        else
            memcpy(rows, projected, bytes);
    }
    if (job->history->commits)
        memcpy(history, job->rows + job->tokens * channels, past * bytes);
    else
        memcpy(history + past * channels, job->rows + past * channels, job->tokens * bytes);
}

/* mixed [tokens, heads * head_dim] of one text's projected tokens. */
static enum status mix(const struct recurrent *call, const struct history *history, const float *projected,
                       const float *gates, size_t tokens, float *mixed) {
    size_t channels = channels_of(call), width = operand_width(call), kept = (size_t)history->kept;
    size_t rows = ((size_t)call->kernel - 1 + tokens) * channels, operands = (kept + tokens) * width;
    size_t states = width && !history->commits ? tiles_of(call) * (size_t)call->state_dim * STATE_TILE : 0;
    size_t openings = call->kind == CHANNEL_DELTA ? tokens * inner_width(call) : 0;
    struct thread_pool pool = limit_threads(&call->sublayer.pool, tokens * channels * sizeof(float) * 8);
    struct recurrent_job job = {.call = call, .history = history, .pool = &pool, .projected = projected};
    job.gates = gates, job.mixed = mixed, job.tokens = tokens, job.kept = kept;
    job.rows = allocate((rows + operands + openings + states) * sizeof *job.rows);
    if (!job.rows)
        return NO_MEMORY;
    job.operands = job.rows + rows;
    job.opening = job.operands + operands;
    job.spare = job.opening + openings;
    enum status status = DONE;
    move_rows(&job);
    do_all(&job, prepare, tokens);
    if (width) {
        if (kept)
            memcpy(job.operands, history->record, kept * width * sizeof *job.operands);
        if (call->kind == MAMBA)
            status = select_steps(&job);
        if (call->kind == CHANNEL_DELTA)
            status = widen(&job);
        if (status == DONE) {
            do_all(&job, scan, tiles_of(call));
            do_all(&job, finish, tokens);
        }
        if (!history->commits)
            memcpy(history->record, job.operands + kept * width, tokens * width * sizeof *job.operands);
    }
    free(job.rows);
    return status;
}

/* What a caller has projected. */
static enum status mix_projected(const struct recurrent *call) {
    return mix(call, call->histories, call->projected, call->gated, (size_t)call->sublayer.tokens, call->mixed);
}

static enum status recurrent_forward(const struct recurrent *call) {
    const struct sublayer *sublayer = &call->sublayer;
    size_t hidden_size = (size_t)sublayer->hidden_size, tokens = (size_t)sublayer->tokens, inner = inner_width(call);
    size_t projects = projection_width(call), gates = gates_width(call);
    size_t each = tokens / (size_t)call->texts;
    float *hidden = allocate(tokens * (hidden_size + projects + gates + inner) * sizeof *hidden);
    if (!hidden)
        return NO_MEMORY;
    float *projected = hidden + tokens * hidden_size, *gated = projected + tokens * projects;
    float *mixed = gated + tokens * gates;
    begin_sublayer(sublayer, hidden);
    enum status status =
        multiply(sublayer, sublayer->format, call->in, call->in_bias, hidden, hidden_size, projected, projects);
    if (status == DONE && gates)
        status = multiply(sublayer, PLAIN + sublayer->type, call->gates, NULL, hidden, hidden_size, gated, gates);
    for (size_t text = 0, first = 0; text < (size_t)call->texts && status == DONE; text++, first += each)
        status = mix(call, call->histories + text, projected + first * projects, gated + first * gates, each,
                     mixed + first * inner);
    if (status == DONE)
        status = multiply(sublayer, sublayer->format, call->out, call->out_bias, mixed, inner, hidden, hidden_size);
    if (status == DONE)
        end_sublayer(sublayer, hidden);
    free(hidden);
    return status;
}

#endif
