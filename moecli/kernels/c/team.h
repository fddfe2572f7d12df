/* Work in numbered units, handed out as threads ask for them, and scratch memory. */
#ifndef MOECLI_TEAM_H
#define MOECLI_TEAM_H

#include "native.h"

#include <stdlib.h>

#define INLINE static inline __attribute__((always_inline))

/* The units of one phase of a job. */
struct units {
    size_t count, next;
};

static int take(struct units *units, size_t *unit) {
    *unit = __atomic_fetch_add(&units->next, 1, __ATOMIC_RELAXED);
    return *unit < units->count;
}

static int alone(const struct team *team) { return team->threads < 2 || !team->parallel || !team->barrier; }

static void run(const struct team *team, void (*work)(void *), void *job) {
    if (alone(team))
        work(job);
    else
        team->parallel(work, job, (unsigned)team->threads, 0);
}

/* All threads have finished what comes before. */
static void meet(const struct team *team) {
    if (!alone(team))
        team->barrier();
}

/* Aligned to a cache line; NULL where there is no memory. */
static void *scratch(size_t bytes) {
    void *memory;
    return posix_memalign(&memory, 64, bytes + 64) ? NULL : memory;
}

static size_t minimum(size_t a, size_t b) { return a < b ? a : b; }

static size_t parts(size_t whole, size_t part) { return whole / part + (whole % part != 0); }

#endif
