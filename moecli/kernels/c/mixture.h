/* The mixture of one token: its choice of experts, what they and the shared one make of it, and the weighted sum. */
#ifndef MOECLI_MIXTURE_H
#define MOECLI_MIXTURE_H

#include "half.h"

#include <float.h>

struct scoring_job {
    const struct mixture *call;
    const struct team *team;
    size_t workers;
    struct units units;
};

static void score_work(void *argument) {
    struct scoring_job *job = argument;
    const struct mixture *call = job->call;
    size_t worker = __atomic_fetch_add(&job->workers, 1, __ATOMIC_RELAXED), width = (size_t)call->half.width, expert;
    while (take(&job->units, job->team, worker, &expert))
        call->logits[expert] = dot_product(call->normed, call->router.weights + expert * width, FP32, width);
}

static void softmax(float *numbers, size_t count) {
    float largest = -INFINITY, sum = 0;
    for (size_t i = 0; i < count; i++) largest = numbers[i] > largest ? numbers[i] : largest;
    for (size_t i = 0; i < count; i++) numbers[i] = exponential(numbers[i] - largest);
    for (size_t i = 0; i < count; i++) sum += numbers[i];
    for (size_t i = 0; i < count; i++) numbers[i] /= sum;
}

#define WORST (-FLT_MAX) /* of what may be picked: better than what was */

/* The largest ones, best first, the earlier of equals. Leaves `ranking` changed. */
static void pick(float *ranking, size_t count, int64_t *chosen, size_t wanted) {
    for (size_t i = 0; i < count; i++) ranking[i] = ranking[i] > WORST ? ranking[i] : WORST; /* also no numbers */
    for (size_t rank = 0; rank < wanted; rank++) {
        size_t best = 0;
        for (size_t i = 1; i < count; i++) best = ranking[i] > ranking[best] ? i : best;
        chosen[rank] = (int64_t)best;
        ranking[best] = -INFINITY;
    }
}

/* Rules out the experts of all but the best groups. */
static void keep_groups(const struct router *router, float *ranking, float *scores, int64_t *kept) {
    size_t groups = (size_t)router->groups, size = (size_t)router->experts / groups;
    for (size_t group = 0; group < groups; group++) {
        float first = -INFINITY, second = -INFINITY;
        for (size_t i = group * size; i < (group + 1) * size; i++) {
            float next = ranking[i];
            second = next > first ? first : next > second ? next : second;
            first = next > first ? next : first;
        }
        scores[group] = router->group_score == LARGEST || size < 2 ? first : first + second;
    }
    pick(scores, groups, kept, (size_t)router->kept_groups);
    for (size_t group = 0; group < groups; group++) {
        int ruled_out = 1;
        for (size_t i = 0; i < (size_t)router->kept_groups; i++) ruled_out &= (size_t)kept[i] != group;
        for (size_t i = group * size; ruled_out && i < (group + 1) * size; i++) ranking[i] = WORST;
    }
}

/* Room for choosing. */
struct choice {
    float *scores, *ranking, *group_scores;
    int64_t *kept;
};

static void weigh(const struct router *router, float *weights) {
    size_t active = (size_t)router->active;
    float power = router->norm_power, total = 0;
    if (router->scoring == SOFTMAX_OF_CHOSEN)
        softmax(weights, active);
    for (size_t i = 0; power > 0 && i < active; i++) total += power == 1 ? weights[i] : powf(weights[i], power);
    total = power > 0 ? (power == 1 ? total : powf(total, 1 / power)) + router->norm_epsilon : 1;
    for (size_t i = 0; i < active; i++) weights[i] = weights[i] / total * router->scaling;
}

/* The chosen experts and their weights, from the logits. */
static void choose(const struct mixture *call, struct choice room) {
    const struct router *router = &call->router;
    size_t experts = (size_t)router->experts, active = (size_t)router->active;
    memcpy(room.scores, call->logits, experts * sizeof *room.scores);
    if (router->scoring == SOFTMAX)
        softmax(room.scores, experts);
    for (size_t i = 0; router->scoring == SIGMOID && i < experts; i++)
        room.scores[i] = 1 / (1 + exponential(-room.scores[i]));
    for (size_t i = 0; i < experts; i++)
        room.ranking[i] = router->bias ? room.scores[i] + router->bias[i] : room.scores[i];
    if (router->groups > 1)
        keep_groups(router, room.ranking, room.group_scores, room.kept);
    pick(room.ranking, experts, call->chosen, active);
    for (size_t i = 0; i < active; i++) call->weights[i] = room.scores[call->chosen[i]];
    weigh(router, call->weights);
}

static enum outcome route(const struct mixture *call) {
    begin_half(&call->half, call->normed);
    if (!call->router.active)
        return DONE;
    size_t experts = (size_t)call->router.experts, groups = (size_t)call->router.groups;
    struct team team = enough(&call->half.team, experts * (size_t)call->half.width * sizeof(float));
    struct scoring_job job = {.call = call, .team = &team, .units = {.count = experts}};
    int64_t *kept = scratch(groups * sizeof *kept + (2 * experts + groups) * sizeof(float));
    if (!kept)
        return NO_MEMORY;
    float *scores = (float *)(kept + groups);
    run(&team, score_work, &job);
    choose(call, (struct choice){scores, scores + experts, scores + 2 * experts, kept});
    free(kept);
    return DONE;
}

static enum outcome feed(const struct mixture *call, const void *const *matrices, int64_t experts, int64_t inner,
                         int32_t activation, float *output) {
    struct feed_forward layer = {call->half.team, call->half.format, activation,
                                 {call->normed, FP32, 1, call->half.width}, matrices, experts, inner, output};
    return feed_forward(&layer);
}

/* The shared expert, and the sum in order of rank: the same whoever computed the outputs. */
static enum outcome conclude(const struct mixture *call) {
    size_t width = (size_t)call->half.width, active = (size_t)call->router.active;
    float *sums = call->outputs + active * width;
    if (call->shared_inner) {
        enum outcome outcome = feed(call, call->shared, 1, call->shared_inner, call->shared_activation, sums);
        if (outcome != DONE)
            return outcome;
    } else
        memset(sums, 0, width * sizeof *sums);
    if (call->shared_gate) {
        float gate = dot_of(call->normed, call->shared_gate, call->half.type, width);
        gate = 1 / (1 + exponential(-gate));
        for (size_t i = 0; i < width; i++) sums[i] *= gate;
    }
    for (size_t rank = 0; rank < active; rank++)
        add_to(sums, call->weights[rank], call->outputs + rank * width, FP32, width);
    end_half(&call->half, sums);
    return DONE;
}

static enum outcome mixture(const struct mixture *call) {
    size_t active = (size_t)call->router.active;
    enum outcome outcome = route(call);
    if (outcome == DONE && active) {
        const void **matrices = scratch(3 * active * sizeof *matrices);
        if (!matrices)
            return NO_MEMORY;
        for (size_t i = 0; i < 3 * active; i++) matrices[i] = call->matrices[3 * call->chosen[i / 3] + (int64_t)(i % 3)];
        outcome = feed(call, matrices, (int64_t)active, call->inner, call->activation, call->outputs);
        free(matrices);
    }
    return outcome == DONE ? conclude(call) : outcome;
}

#endif
