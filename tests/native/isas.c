/* Every instruction set against the last one, scalar: in every format packing, products and both sublayers of a block
   must agree in every byte. Buffers have their exact sizes, for a sanitiser; the same program checks other processors
   in an emulator. */
#include "native.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int moecli_linear(int isa, const struct linear *call);
int moecli_feed_forward(int isa, const struct feed_forward *call);
int moecli_gated(int isa, const struct feed_forward *call);
int moecli_pack(int isa, const struct pack *call);
int moecli_decode_step(int isa, const struct decode_step *call);
int moecli_route(int isa, const struct moe *call);
int moecli_combine(int isa, const struct moe *call);
int moecli_prompt_attention(int isa, const struct prompt_attention *call);
const char *moecli_isa(int index);

static uint32_t state = 1;
static int failures;

/* Roughly bell-shaped, with a few far outliers. */
static float number(void) {
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        state = state * 1664525u + 1013904223u;
        sum += (float)(state >> 8) / 16777216.0f - 0.5f;
    }
    return state >> 24 == 7 ? 20 * sum : sum;
}

static size_t size_of(int format, size_t rows, size_t columns) {
    size_t panels = (rows + 15) / 16, weights = rows * columns;
    size_t scales = (columns + 255) / 256 * 32, groups = (columns + 31) / 32;
    switch (format) {
    case Q4: return panels * (scales + groups * 272);
    case Q3: return panels * (scales + groups * 208);
    case Q8: return panels * ((columns + 31) / 32) * 544;
    case PLAIN + FP32: return weights * 4;
    case MXFP4: return panels * groups * 272;
    case Q4_0:
    case IQ4_NL: return panels * groups * 288;
    case INT8: return weights + rows * 4;
    case NF4: return (weights + 1) / 2 + (weights + 63) / 64 * 4;
    default: return weights * 2;
    }
}

static float *numbers(size_t count) {
    float *result = malloc(count * sizeof *result);
    for (size_t i = 0; i < count; i++)
        result[i] = number();
    return result;
}

static void check(const char *what, int isa, int format, const void *found, void **expected, size_t bytes) {
    if (!*expected) {
        *expected = malloc(bytes);
        memcpy(*expected, found, bytes);
    } else if (memcmp(found, *expected, bytes)) {
        printf("%s differs on %s, format %d\n", what, moecli_isa(isa), format);
        failures++;
    }
}

/* As numbers of a type, rounded down to 16 bits or as they are. */
static void *typed(int type, size_t count) {
    float *from = numbers(count);
    if (type == FP32)
        return from;
    uint16_t *to = malloc(count * sizeof *to);
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, sizeof bits);
        to[i] = (uint16_t)(bits >> 16);
    }
    free(from);
    return to;
}

/* Plain numbers, or codes at random and their scales. */
static uint8_t *row_major(int format, size_t rows, size_t columns) {
    if (format < INT8)
        return typed(format - PLAIN, rows * columns);
    size_t bytes = size_of(format, rows, columns), codes = format == INT8 ? rows * columns : (rows * columns + 1) / 2;
    uint8_t *matrix = malloc(bytes);
    for (size_t i = 0; i < codes; i++)
        matrix[i] = (uint8_t)(1 + (int)(100 * number()));
    float *scales = numbers((bytes - codes) / 4);
    memcpy(matrix + codes, scales, bytes - codes);
    free(scales);
    return matrix;
}

static uint8_t byte(void) {
    number();
    return (uint8_t)(state >> 24);
}

/* Codes at random and moderate scales, as others publish them: no native code packs these. */
static uint8_t *kept_matrix(int format, size_t rows, size_t columns) {
    size_t bytes = size_of(format, rows, columns), groups = (columns + 31) / 32, most = format == MXFP4 ? 16 : 1;
    uint8_t *matrix = malloc(bytes), *at = matrix;
    for (size_t i = 0; i < bytes; i++)
        matrix[i] = byte();
    for (size_t strip = 0; strip < (rows + 15) / 16; strip++)
        for (size_t group = 0, tile; group < groups; group += tile) {
            tile = groups - group < most ? groups - group : most;
            for (size_t i = 0; i < 16 * tile; i++)
                if (format == MXFP4)
                    at[i] = (uint8_t)(118 + byte() % 8);
                else
                    at[2 * i + 1] = (uint8_t)(0x20 | (byte() & 0x83));
            at += tile * (format == MXFP4 ? 272 : 288);
        }
    return matrix;
}

static uint8_t *packed_matrix(int last, int format, size_t rows, size_t columns, int type) {
    if (format >= PLAIN)
        return row_major(format, rows, columns);
    if (format == MXFP4 || format == Q4_0 || format == IQ4_NL)
        return kept_matrix(format, rows, columns);
    float *weights = numbers(rows * columns);
    size_t bytes = size_of(format, rows, columns);
    void *expected = NULL, *packed = malloc(bytes);
    for (int isa = last; isa >= 0; isa--) {
        if (!*moecli_isa(isa))
            continue;
        struct pack call = {{0}, format, type, weights, (int64_t)rows, (int64_t)columns, (int64_t)columns, 1, packed};
        moecli_pack(isa, &call);
        check("pack", isa, format, packed, &expected, bytes);
    }
    free(weights);
    free(packed);
    return expected;
}

/* gate, up or down, by number */
static uint8_t *expert_matrix(int last, int format, size_t which, size_t intermediate_size, size_t hidden_size) {
    if (which == 2)
        return packed_matrix(last, format, hidden_size, intermediate_size, FP32);
    return packed_matrix(last, format, intermediate_size, hidden_size, FP32);
}

static void try(int last, int format, size_t intermediate_size, size_t hidden_size, size_t count, int activation) {
    uint8_t *matrices[6];
    for (int i = 0; i < 6; i++)
        matrices[i] = expert_matrix(last, format, (size_t)i % 3, intermediate_size, hidden_size);
    float *x = numbers(count * hidden_size), *out = malloc(2 * count * (intermediate_size + hidden_size) * sizeof *out);
    void *one = NULL, *layer = NULL, *hidden = NULL;
    for (int isa = last; isa >= 0; isa--) {
        if (!*moecli_isa(isa))
            continue;
        struct tokens input = {x, FP32, (int64_t)count, (int64_t)hidden_size};
        struct linear linear = {{0}, format, input, matrices[0], (int64_t)intermediate_size, out};
        moecli_linear(isa, &linear);
        check("linear", isa, format, out, &one, count * intermediate_size * sizeof *out);
        const void *const *list = (const void *const *)matrices;
        struct feed_forward feed = {.format = format, .activation = activation, .input = input, .matrices = list};
        feed.experts = 2, feed.intermediate_size = (int64_t)intermediate_size, feed.output = out;
        moecli_feed_forward(isa, &feed);
        check("feed_forward", isa, format, out, &layer, 2 * count * hidden_size * sizeof *out);
        feed.experts = 1;
        moecli_gated(isa, &feed);
        check("gated", isa, format, out, &hidden, count * intermediate_size * sizeof *out);
    }
    for (int i = 0; i < 6; i++)
        free(matrices[i]);
    free(x), free(out), free(one), free(layer), free(hidden);
}

static void step(int isa, void *x, struct block block) {
    struct decode_step call = {.x = x, .blocks = &block, .count = 1, .tokens = 1};
    moecli_decode_step(isa, &call);
}

static struct sublayer sublayer_of(int type, int format, int norm, float multiplier, const void *before, void *x) {
    return (struct sublayer){.type = type,
                             .format = format,
                             .norm = norm,
                             .eps = 1e-5f,
                             .multiplier = multiplier,
                             .scale = 1,
                             .before = before,
                             .x = x};
}

static void *copy(const void *from, size_t bytes) { return memcpy(malloc(bytes), from, bytes); }

/* A token's attention, with every option that `variant` switches on. */
static void try_attention(int last, int format, int type, int variant) {
    const size_t hidden_size = 72, heads = 6, shared = variant & 1 ? 1 : 3, dim = variant & 2 ? 16 : 24, rows = 600;
    const size_t size = type == FP32 ? 4 : 2, all = (heads + 2 * shared) * dim, rotary_dim = variant & 4 ? 0 : 8;
    uint8_t *qkv = packed_matrix(last, format, all, hidden_size, FP32);
    uint8_t *output = packed_matrix(last, format, hidden_size, heads * dim, FP32);
    void *before = typed(type, hidden_size), *after = typed(type, hidden_size), *x = typed(type, hidden_size);
    void *bias = typed(type, all);
    void *norm = typed(type, heads * dim), *sinks = typed(type, heads);
    uint8_t *gate = packed_matrix(last, format, heads, hidden_size, FP32);
    void *cosines = typed(type, 9 * rotary_dim + 1), *sines = typed(type, 9 * rotary_dim + 1);
    void *keys = typed(type, shared * rows * dim), *values = typed(type, shared * rows * dim);
    void *expected_x = NULL, *expected_keys = NULL, *expected_values = NULL;
    for (int isa = last; isa >= 0; isa--) {
        if (!*moecli_isa(isa))
            continue;
        void *own = copy(x, hidden_size * size);
        void *own_keys = copy(keys, shared * rows * dim * size), *own_values = copy(values, shared * rows * dim * size);
        struct sublayer sublayer = sublayer_of(type, format, variant & 1 ? LAYER : RMS, 0.7f, before, own);
        sublayer.after = variant & 2 ? after : NULL;
        sublayer.hidden_size = (int64_t)hidden_size;
        struct attention call = {.sublayer = sublayer,
                                 .qkv = qkv,
                                 .output = output,
                                 .heads = (int64_t)heads,
                                 .kv_heads = (int64_t)shared,
                                 .head_dim = (int64_t)dim,
                                 .value_dim = (int64_t)dim,
                                 .value_scale = variant & 1 ? 0.8f : 1,
                                 .scale = 0.2f};
        call.sinks = variant & 1 ? sinks : NULL, call.value_norm = variant & 4;
        call.gate = variant & 2 ? gate : NULL, call.gate_width = variant & 2 ? (int64_t)heads : 0;
        call.gate_kind = variant & 4 ? GATE_SOFTPLUS : GATE_SIGMOID;
        call.qkv_bias = variant & 2 ? bias : NULL, call.output_bias = variant & 4 ? after : NULL;
        call.qk_norm = variant & 3, call.q_norm = norm, call.k_norm = norm, call.interleaved = variant & 1;
        call.clip = variant & 1 ? 0.5f : 0, call.softcap = variant & 4 ? 3 : 0;
        call.rotary_dim = (int64_t)rotary_dim;
        struct place place = {cosines, sines, 8, own_keys, own_values, (int64_t)rows, variant & 1 ? 7 : 0, 200};
        place.last = variant & 2 ? (int64_t)rows - 1 : 200, place.query_scale = variant & 1 ? 1.2f : 1;
        call.places = &place;
        step(isa, own, (struct block){.attention = &call});
        check("attention", isa, format, own, &expected_x, hidden_size * size);
        check("keys", isa, format, own_keys, &expected_keys, shared * rows * dim * size);
        check("values", isa, format, own_values, &expected_values, shared * rows * dim * size);
        free(own), free(own_keys), free(own_values);
    }
    free(qkv), free(output), free(before), free(after), free(x), free(bias), free(norm), free(cosines), free(sines);
    free(keys), free(values), free(expected_x), free(expected_keys), free(expected_values), free(sinks), free(gate);
}

/* A token's latent attention: few heads and more than a tile of them, few keys and more than one span and block. */
static void try_latent(int last, int format, int type, int variant) {
    const size_t hidden_size = 72, heads = variant & 1 ? 35 : 6, low_rank = variant & 2 ? 40 : 0, rank = 29;
    const size_t nope_dim = 11, rotary_dim = 6, value_dim = 13, width = rank + rotary_dim, rows = 2000;
    const size_t size = type == FP32 ? 4 : 2, columns = low_rank ? low_rank : hidden_size;
    uint8_t *query = packed_matrix(last, format, heads * (nope_dim + rotary_dim), columns, FP32);
    uint8_t *output = packed_matrix(last, format, hidden_size, heads * value_dim, FP32);
    void *norm = typed(type, hidden_size), *x = typed(type, hidden_size), *bias = typed(type, hidden_size);
    void *query_down = typed(type, low_rank * hidden_size + 1), *latent_down = typed(type, width * hidden_size);
    void *expansion = typed(type, heads * (nope_dim + value_dim) * rank), *latents = typed(type, rows * width);
    void *cosines = typed(type, 9 * rotary_dim), *sines = typed(type, 9 * rotary_dim);
    void *expected_x = NULL, *expected_latents = NULL;
    for (int isa = last; isa >= 0; isa--) {
        if (!*moecli_isa(isa))
            continue;
        void *own = copy(x, hidden_size * size), *own_latents = copy(latents, rows * width * size);
        struct latent_attention call = {.query = query, .query_down = query_down, .latent_down = latent_down};
        call.sublayer = sublayer_of(type, format, RMS, 0.7f, norm, own);
        call.sublayer.hidden_size = (int64_t)hidden_size;
        call.query_norm = call.latent_norm = norm, call.expansion = expansion, call.output = output;
        call.query_down_bias = call.latent_down_bias = call.output_bias = variant & 4 ? bias : NULL;
        call.heads = (int64_t)heads, call.query_rank = (int64_t)low_rank, call.rank = (int64_t)rank;
        call.nope_dim = (int64_t)nope_dim, call.rotary_dim = (int64_t)rotary_dim, call.value_dim = (int64_t)value_dim;
        call.interleaved = variant & 1, call.norm_eps = 1e-6f, call.scale = 0.2f;
        struct place place = {cosines, sines, 8, own_latents, own_latents, (int64_t)rows, variant & 1 ? 7 : 0, 5};
        place.last = variant & 2 ? (int64_t)rows - 1 : 7 + variant, place.query_scale = 1;
        call.places = &place;
        step(isa, own, (struct block){.latent_attention = &call});
        check("latent attention", isa, format, own, &expected_x, hidden_size * size);
        check("latents", isa, format, own_latents, &expected_latents, rows * width * size);
        free(own), free(own_latents);
    }
    free(query), free(output), free(norm), free(x), free(bias), free(query_down), free(latent_down), free(expansion);
    free(latents), free(cosines), free(sines), free(expected_x), free(expected_latents);
}

/* A prompt's attention: over keys and values, over latents as they are, over latents expanded; `type` FP16 too. */
static void try_prompt(int last, int type, size_t tokens, int variant) {
    const size_t heads = 6, shared = variant & 1 ? 2 : 6, dim = 20, value_dim = variant & 2 ? 20 : 13, before = 70;
    const size_t size = type == FP32 ? 4 : 2, rank = 24, nope_dim = 15, rows = before + tokens;
    const size_t width = rank + dim - nope_dim;
    void *queries = typed(type, tokens * (heads * dim + 3)), *keys = typed(type, shared * rows * dim);
    void *values = typed(type, shared * rows * value_dim), *latents = typed(type, rows * width);
    void *expansion = typed(type, heads * (nope_dim + value_dim) * rank);
    void *out = malloc(tokens * heads * value_dim * size);
    void *expected[3] = {NULL, NULL, NULL};
    for (int isa = last; isa >= 0; isa--) {
        if (!*moecli_isa(isa))
            continue;
        struct prompt_attention call = {.type = type, .queries = queries, .output = out, .scale = 0.2f};
        call.tokens = (int64_t)tokens, call.heads = (int64_t)heads, call.head_dim = (int64_t)dim;
        call.value_dim = (int64_t)value_dim, call.rows = (int64_t)rows, call.query_stride = (int64_t)(heads * dim + 3);
        call.first = 50, call.start = 50 + (int64_t)before, call.window = variant & 2 ? 60 : 0;
        for (int kind = 0; kind < 3; kind++) {
            call.keys = kind ? latents : keys, call.values = kind ? NULL : values;
            call.expansion = kind ? expansion : NULL, call.rank = kind ? (int64_t)rank : 0;
            call.nope_dim = kind ? (int64_t)nope_dim : 0, call.softcap = variant & 1 && !kind ? 3 : 0;
            call.kv_heads = (int64_t)(kind == 0 ? shared : kind == 1 ? 1 : heads);
            moecli_prompt_attention(isa, &call);
            check("prompt_attention", isa, type, out, &expected[kind], tokens * heads * value_dim * size);
        }
    }
    free(queries), free(keys), free(values), free(latents), free(expansion), free(out);
    free(expected[0]), free(expected[1]), free(expected[2]);
}

/* A token's mixture of experts: at once, and in its steps. */
static void try_moe(int last, int format, int type, int variant) {
    const size_t hidden_size = 72, intermediate_size = 40, experts = 12, top_k = variant & 1 ? 12 : 3;
    const size_t shared = variant & 2 ? 48 : 0, size = type == FP32 ? 4 : 2;
    uint8_t *matrices[36], *gate_up, *down;
    for (size_t i = 0; i < 36; i++)
        matrices[i] = expert_matrix(last, format, i % 3, intermediate_size, hidden_size);
    gate_up = expert_matrix(last, format, 0, 2 * 48, hidden_size);
    down = expert_matrix(last, format, 2, 48, hidden_size);
    void *before = typed(type, hidden_size), *x = typed(type, hidden_size), *gate = typed(type, hidden_size);
    float *router = numbers(experts * hidden_size), *bias = numbers(experts);
    float *topk_weights = malloc(top_k * sizeof *topk_weights);
    float *normed = malloc(hidden_size * sizeof *normed), *logits = malloc(experts * sizeof *logits);
    float *outputs = malloc((top_k + 1) * hidden_size * sizeof *outputs);
    int64_t *topk_ids = malloc(top_k * sizeof *topk_ids);
    if (variant == 7) /* not a number: any choice will do, but a choice it must be */
        for (size_t i = 0; i < experts; i++)
            router[i * hidden_size] = NAN;
    void *expected_x = NULL, *expected_weights = NULL, *expected_chosen = NULL;
    for (int isa = last; isa >= 0; isa--) {
        if (!*moecli_isa(isa))
            continue;
        for (int steps = 0; steps < 2; steps++) {
            void *own = copy(x, hidden_size * size);
            struct sublayer sublayer = sublayer_of(type, format, RMS, 1, before, own);
            sublayer.hidden_size = (int64_t)hidden_size, sublayer.tokens = 1;
            struct moe call = {.sublayer = sublayer,
                               .shared_scale = variant & 1 ? 0.5f : 1,
                               .intermediate_size = (int64_t)intermediate_size,
                               .shared_intermediate_size = (int64_t)shared,
                               .activation = variant % 4,
                               .shared_activation = SILU,
                               .normed = normed,
                               .logits = logits,
                               .topk_weights = topk_weights,
                               .outputs = outputs,
                               .topk_ids = topk_ids};
            struct router rule = {.weights = router, .bias = variant & 4 ? bias : NULL, .experts = (int64_t)experts};
            rule.top_k = (int64_t)top_k, rule.n_group = variant & 1 ? 1 : 4, rule.topk_group = variant & 1 ? 1 : 2;
            rule.scoring = variant % 3, rule.group_score = variant >> 2 & 1;
            rule.norm_power = (float)(variant % 3), rule.norm_epsilon = 1e-6f, rule.scaling = 1.5f;
            rule.norm_floor = variant & 2 ? 0.7f : 0;
            call.router = rule;
            call.matrices = (const void *const *)matrices;
            call.shared_gate_up = gate_up, call.shared_down = down;
            call.shared_gate = variant & 4 ? gate : NULL;
            if (steps) {
                const void *list[36];
                moecli_route(isa, &call);
                for (size_t i = 0; i < 3 * top_k; i++)
                    list[i] = matrices[3 * (size_t)topk_ids[i / 3] + i % 3];
                struct tokens input = {normed, FP32, 1, (int64_t)hidden_size};
                struct feed_forward feed = {
                    .format = format, .activation = call.activation, .input = input, .matrices = list};
                feed.output = outputs;
                feed.experts = (int64_t)top_k, feed.intermediate_size = (int64_t)intermediate_size;
                moecli_feed_forward(isa, &feed);
                moecli_combine(isa, &call);
            } else
                step(isa, own, (struct block){.moe = &call});
            check("moe", isa, format, own, &expected_x, hidden_size * size);
            check("topk_weights", isa, format, topk_weights, &expected_weights, top_k * sizeof *topk_weights);
            check("topk_ids", isa, format, topk_ids, &expected_chosen, top_k * sizeof *topk_ids);
            free(own);
        }
    }
    for (int i = 0; i < 36; i++)
        free(matrices[i]);
    free(gate_up), free(down), free(before), free(x), free(gate), free(router), free(bias);
    free(topk_weights), free(normed), free(logits), free(outputs), free(topk_ids);
    free(expected_x), free(expected_weights), free(expected_chosen);
}

int main(void) {
    int last = 0;
    while (moecli_isa(last + 1))
        last++;
    for (int isa = 0; isa <= last; isa++)
        printf("%s ", moecli_isa(isa));
    printf("\n");
    static const size_t shapes[][2] = {{64, 256}, {5, 7}, {40, 100}, {17, 129}, {33, 800}};
    static const size_t counts[] = {1, 2, 3, 4, 5, 6, 19};
    static const int types[] = {BF16, FP32, FP16};
    for (int format = Q4; format <= NF4; format++)
        for (size_t shape = 0; shape < sizeof shapes / sizeof *shapes; shape++)
            for (size_t count = 0; count < sizeof counts / sizeof *counts; count += format < PLAIN ? 1 : 2)
                try(last, format, shapes[shape][0], shapes[shape][1], counts[count], (int)(count % 4));
    for (int format = PLAIN; format <= NF4; format++) /* more columns than are added side by side */
        try(last, format, 5, 1100, 1, SILU), try(last, format, 5, 1088, 3, SILU);
    for (int format = Q4; format <= NF4; format++)
        for (int variant = 0; variant < 8; variant++) {
            try_attention(last, format, types[variant % 3], variant);
            try_latent(last, format, types[variant % 3], variant);
            try_moe(last, format, types[variant / 2 % 3], variant);
        }
    for (int variant = 0; variant < 4; variant++)
        for (int type = FP32; type <= FP16; type++)
            try_prompt(last, type, variant & 1 ? 45 : 7, variant);
    printf("%d failures\n", failures);
    return failures != 0;
}
