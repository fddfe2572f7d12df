/* Mixture of experts for a few tokens: routing, what the selected experts and the shared one make of them, their sums.
 */
#ifndef MOECLI_MOE_H
#define MOECLI_MOE_H

#include "sublayer.inc.h"

#include <float.h>

static void softmax(float *numbers, size_t count) {
    float largest = -INFINITY, sum = 0;
    for (size_t i = 0; i < count; i++)
        largest = numbers[i] > largest ? numbers[i] : largest;
    for (size_t i = 0; i < count; i++)
        numbers[i] = exponential(numbers[i] - largest);
    for (size_t i = 0; i < count; i++)
        sum += numbers[i];
    for (size_t i = 0; i < count; i++)
        numbers[i] /= sum;
}

#define WORST (-FLT_MAX) /* of what may be picked: better than what was */

/* The largest ones, best first, the earlier of equals. Leaves `ranking` changed. */
static void topk(float *ranking, size_t count, int64_t *ids, size_t wanted) {
    for (size_t i = 0; i < count; i++)
        ranking[i] = ranking[i] > WORST ? ranking[i] : WORST; /* also no numbers */
    for (size_t rank = 0; rank < wanted; rank++) {
        size_t best = 0;
        for (size_t i = 1; i < count; i++)
            best = ranking[i] > ranking[best] ? i : best;
        ids[rank] = (int64_t)best;
        ranking[best] = -INFINITY;
    }
}

/* Rules out the experts of all but the best groups. */
static void keep_groups(const struct router *router, float *ranking, float *scores, int64_t *kept) {
    size_t n_group = (size_t)router->n_group, size = (size_t)router->experts / n_group;
    for (size_t group = 0; group < n_group; group++) {
        float first = -INFINITY, second = -INFINITY;
        for (size_t i = group * size; i < (group + 1) * size; i++) {
            float next = ranking[i];
            second = next > first ? first : next > second ? next : second;
            first = next > first ? next : first;
        }
        scores[group] = router->group_score == LARGEST || size < 2 ? first : first + second;
    }
    topk(scores, n_group, kept, (size_t)router->topk_group);
    for (size_t group = 0; group < n_group; group++) {
        int ruled_out = 1;
        for (size_t i = 0; i < (size_t)router->topk_group; i++)
            ruled_out &= (size_t)kept[i] != group;
        for (size_t i = group * size; ruled_out && i < (group + 1) * size; i++)
            ranking[i] = WORST;
    }
}

/* Memory for `select_experts`. */
struct router_scratch {
    float *scores, *ranking, *group_scores;
    int64_t *kept;
};

static void normalise_weights(const struct router *router, float *weights) {
    size_t top_k = (size_t)router->top_k;
    float power = router->norm_power, total = 0;
    if (router->scoring == SOFTMAX_OF_TOPK)
        softmax(weights, top_k);
    for (size_t i = 0; power > 0 && i < top_k; i++)
        total += power == 1 ? weights[i] : powf(weights[i], power);
    total = power > 0 ? (power == 1 ? total : powf(total, 1 / power)) + router->norm_epsilon : 1;
    total = total < router->norm_floor ? router->norm_floor : total;
    for (size_t i = 0; i < top_k; i++)
        weights[i] = weights[i] / total * router->scaling;
}

/* One expert after the other, its weight its share among the rivals that are left (arXiv 2409.12136). */
static void mix_sparsely(const struct router *router, const float *logits, float *left, int64_t *ids, float *weights) {
    size_t experts = (size_t)router->experts;
    memcpy(left, logits, experts * sizeof *left);
    for (size_t rank = 0; rank < (size_t)router->top_k; rank++) {
        size_t best = 0;
        for (size_t i = 1; i < experts; i++)
            best = left[i] > left[best] ? i : best;
        float largest = left[best], sum = 0;
        for (size_t i = 0; i < experts; i++) {
            float size = fabsf(logits[i]) > largest ? fabsf(logits[i]) : largest;
            int beaten = (largest - logits[i]) / size > 2 * router->jitter;
            sum += beaten ? 0 : exponential(left[i] - largest);
        }
        ids[rank] = (int64_t)best;
        weights[rank] = 1 / sum;
        left[best] = -INFINITY;
    }
}

/* A token's selected experts and their weights, from its logits. */
static void select_experts(const struct moe *call, size_t token, struct router_scratch scratch) {
    const struct router *router = &call->router;
    size_t experts = (size_t)router->experts, top_k = (size_t)router->top_k;
    int64_t *topk_ids = call->topk_ids + token * top_k;
    float *topk_weights = call->topk_weights + token * top_k, *logits = call->logits + token * experts;
    int is_sigmoid = router->scoring == SIGMOID || router->scoring == SIGMOID_INPUT;
    for (size_t i = 0; router->softcap > 0 && i < experts; i++)
        logits[i] = router->softcap * tanhf(logits[i] / router->softcap);
    if (router->scoring == SPARSEMIXER) {
        mix_sparsely(router, logits, scratch.scores, topk_ids, topk_weights);
        return;
    }
    memcpy(scratch.scores, logits, experts * sizeof *scratch.scores);
    if (router->scoring == SOFTMAX)
        softmax(scratch.scores, experts);
    for (size_t i = 0; is_sigmoid && i < experts; i++)
        scratch.scores[i] = 1 / (1 + exponential(-scratch.scores[i]));
    const float *order = is_sigmoid && router->n_group <= 1 ? logits : scratch.scores; /* where sigmoids are all 1 */
    for (size_t i = 0; i < experts; i++)
        scratch.ranking[i] = router->bias ? scratch.scores[i] + router->bias[i] : order[i];
    if (router->n_group > 1)
        keep_groups(router, scratch.ranking, scratch.group_scores, scratch.kept);
    topk(scratch.ranking, experts, topk_ids, top_k);
    for (size_t i = 0; i < top_k; i++)
        topk_weights[i] = scratch.scores[topk_ids[i]];
    normalise_weights(router, topk_weights);
    for (size_t i = 0; router->expert_scale && i < top_k; i++)
        topk_weights[i] *= router->expert_scale[topk_ids[i]];
}

/* What the router reads where that is not what experts do: [tokens, hidden_size] */
static void scale_input(const struct moe *call, float *input) {
    const struct sublayer *sublayer = &call->sublayer;
    size_t hidden_size = (size_t)sublayer->hidden_size, count = (size_t)sublayer->tokens * hidden_size;
    load_numbers(input, sublayer->x, sublayer->type, count);
    for (float *token = input; token < input + count; token += hidden_size)
        normalise(RMS, sublayer->eps, call->router.input_scale, FP32, token, hidden_size);
}

/* Of what `normed` holds already. */
static enum status route_normed(const struct moe *call) {
    if (!call->router.top_k)
        return DONE;
    size_t experts = (size_t)call->router.experts, n_group = (size_t)call->router.n_group;
    size_t hidden_size = (size_t)call->sublayer.hidden_size;
    size_t own = call->router.input_scale ? (size_t)call->sublayer.tokens * hidden_size : 0;
    int64_t *kept = allocate(n_group * sizeof *kept + (2 * experts + n_group + own) * sizeof(float));
    if (!kept)
        return NO_MEMORY;
    float *scores = (float *)(kept + n_group), *input = scores + 2 * experts + n_group;
    if (own)
        scale_input(call, input);
    enum status status = multiply(&call->sublayer, PLAIN + FP32, call->router.weights, NULL, own ? input : call->normed,
                                  hidden_size, call->logits, experts);
    for (size_t token = 0; status == DONE && token < (size_t)call->sublayer.tokens; token++)
        select_experts(call, token, (struct router_scratch){scores, scores + experts, scores + 2 * experts, kept});
    free(kept);
    return status;
}

static enum status route(const struct moe *call) {
    begin_sublayer(&call->sublayer, call->normed);
    return route_normed(call);
}

/* Of `count` tokens: output [experts, count, hidden_size]. */
static enum status experts_forward(const struct moe *call, const void *const *matrices, int64_t experts,
                                   const float *input, int64_t count, float *output) {
    struct feed_forward layer = {.pool = call->sublayer.pool, .format = call->sublayer.format};
    layer.activation = call->activation;
    layer.input = (struct tokens){input, FP32, count, call->sublayer.hidden_size};
    layer.matrices = matrices;
    layer.experts = experts;
    layer.intermediate_size = call->intermediate_size;
    layer.output = output;
    return feed_forward(&layer);
}

static enum status shared_forward(const struct moe *call, const float *input, float *output) {
    const void *shared[3] = {call->shared_gate_up, call->shared_gate_up, call->shared_down};
    struct feed_forward layer = {.pool = call->sublayer.pool, .format = call->sublayer.format, .stacked = 1};
    layer.activation = call->shared_activation;
    layer.input = (struct tokens){input, FP32, call->sublayer.tokens, call->sublayer.hidden_size};
    layer.matrices = shared;
    layer.experts = 1;
    layer.intermediate_size = call->shared_intermediate_size;
    layer.output = output;
    return feed_forward(&layer);
}

/* sums [tokens, hidden_size] = what the shared expert makes of the tokens */
static enum status shared_sums(const struct moe *call, float *sums) {
    const struct sublayer *sublayer = &call->sublayer;
    size_t hidden_size = (size_t)sublayer->hidden_size, count = (size_t)sublayer->tokens * hidden_size;
    memset(sums, 0, count * sizeof *sums);
    if (!call->shared_intermediate_size)
        return DONE;
    float *own = call->shared_before ? allocate(count * sizeof *own) : NULL;
    if (call->shared_before && !own)
        return NO_MEMORY;
    if (own) {
        load_numbers(own, sublayer->x, sublayer->type, count);
        normalise_tokens(sublayer, call->shared_before, own);
    }
    enum status status = shared_forward(call, own ? own : call->normed, sums);
    free(own);
    for (size_t at = 0; status == DONE && at < count; at += hidden_size) {
        float factor = call->shared_scale;
        if (call->shared_gate) {
            float gate = dot_of(call->normed + at, call->shared_gate, sublayer->type, hidden_size);
            factor /= 1 + exponential(-gate);
        }
        for (size_t i = 0; factor != 1 && i < hidden_size; i++)
            sums[at + i] *= factor;
    }
    normalise_tokens(sublayer, call->shared_after, sums);
    return status;
}

/* The shared expert, and the sums in order of rank: the same whoever computed the outputs. */
static enum status combine(const struct moe *call) {
    size_t hidden_size = (size_t)call->sublayer.hidden_size, top_k = (size_t)call->router.top_k;
    size_t tokens = (size_t)call->sublayer.tokens;
    float *sums = call->outputs + tokens * top_k * hidden_size;
    enum status status = shared_sums(call, sums);
    float *routed = call->routed_after && status == DONE ? allocate(hidden_size * sizeof *routed) : NULL;
    if (status != DONE || (call->routed_after && !routed))
        return status == DONE ? NO_MEMORY : status;
    for (size_t token = 0; token < tokens; token++) {
        float *sum = routed ? memset(routed, 0, hidden_size * sizeof *sum) : sums + token * hidden_size;
        for (size_t rank = token * top_k; rank < (token + 1) * top_k; rank++) {
            float weight = call->router.scoring == SIGMOID_INPUT ? 1 : call->topk_weights[rank];
            add_to(sum, weight, call->outputs + rank * hidden_size, FP32, hidden_size);
        }
        if (routed) {
            normalise(call->sublayer.norm, call->sublayer.eps, call->routed_after, call->sublayer.type, routed,
                      hidden_size);
            add_to(sums + token * hidden_size, 1, routed, FP32, hidden_size);
        }
    }
    free(routed);
    end_sublayer(&call->sublayer, sums);
    return DONE;
}

/* What an expert reads of a token that ranks it so. */
static void copy_input(const struct moe *call, size_t rank, float *to) {
    size_t hidden_size = (size_t)call->sublayer.hidden_size;
    memcpy(to, call->normed + rank / (size_t)call->router.top_k * hidden_size, hidden_size * sizeof *to);
    for (size_t i = 0; call->router.scoring == SIGMOID_INPUT && i < hidden_size; i++)
        to[i] *= call->topk_weights[rank];
}

/* The selected experts of one token, all at once. */
static enum status token_forward(const struct moe *call) {
    size_t top_k = (size_t)call->router.top_k;
    const void **matrices = allocate(3 * top_k * sizeof *matrices);
    if (!matrices)
        return NO_MEMORY;
    for (size_t i = 0; i < 3 * top_k; i++)
        matrices[i] = call->matrices[3 * call->topk_ids[i / 3] + (int64_t)(i % 3)];
    enum status status = experts_forward(call, matrices, (int64_t)top_k, call->normed, 1, call->outputs);
    free(matrices);
    return status;
}

/* Expert after expert, each for all tokens that selected it: its weights are read once. */
static enum status tokens_forward(const struct moe *call) {
    size_t hidden_size = (size_t)call->sublayer.hidden_size, top_k = (size_t)call->router.top_k;
    size_t tokens = (size_t)call->sublayer.tokens, bytes = hidden_size * sizeof(float);
    float *rows = allocate(2 * tokens * bytes), *outputs = rows + tokens * hidden_size;
    if (!rows)
        return NO_MEMORY;
    enum status status = DONE;
    for (int64_t expert = 0; expert < call->router.experts && status == DONE; expert++) {
        size_t count = 0;
        for (size_t rank = 0; rank < tokens * top_k; rank++)
            if (call->topk_ids[rank] == expert)
                copy_input(call, rank, rows + count++ * hidden_size);
        if (!count)
            continue;
        status = experts_forward(call, call->matrices + 3 * expert, 1, rows, (int64_t)count, outputs);
        for (size_t rank = tokens * top_k; rank-- > 0;)
            if (call->topk_ids[rank] == expert)
                memcpy(call->outputs + rank * hidden_size, outputs + --count * hidden_size, bytes);
    }
    free(rows);
    return status;
}

static enum status moe_forward(const struct moe *call) {
    enum status status = call->reads_input ? route_normed(call) : route(call);
    int together = call->sublayer.tokens == 1 && call->router.scoring != SIGMOID_INPUT;
    if (status == DONE && call->router.top_k)
        status = together ? token_forward(call) : tokens_forward(call);
    return status == DONE ? combine(call) : status;
}

#endif
