/* A tier: all calls, compiled for its instructions. */
#include "attention.h"
#include "mixture.h"

static enum outcome pass(const struct pass *call) {
    enum outcome outcome = DONE;
    for (int64_t i = 0; i < call->count && outcome == DONE; i++) {
        struct attention *first = call->blocks[i].attention;
        struct mixture *second = call->blocks[i].mixture;
        if (first) {
            first->half.x = call->x, first->half.team.threads = call->threads;
            outcome = attention(first);
        }
        if (second && outcome == DONE) {
            second->half.x = call->x, second->half.team.threads = call->threads;
            outcome = mixture(second);
        }
    }
    return outcome;
}

#define NAMED(name) NAMED_(name)
#define NAMED_(name) moecli_##name
#define TEXT(name) TEXT_(name)
#define TEXT_(name) #name
const struct tier NAMED(TIER) = {TEXT(TIER), linear, feed_forward, gated, pack, pass, route, conclude};
