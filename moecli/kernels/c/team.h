/* Threads, the numbered units of work they take, and scratch memory. */
#ifndef MOECLI_TEAM_H
#define MOECLI_TEAM_H

#include "native.h"

#include <stdlib.h>

#define INLINE static inline __attribute__((always_inline))

static size_t minimum(size_t a, size_t b) { return a < b ? a : b; }

static size_t parts(size_t whole, size_t part) { return whole / part + (whole % part != 0); }

/* The units of one phase of a job, as a range for each thread. Neighbours in memory stay with one thread: two that take
   turns every few pages get half of the bandwidth, for each prefetches what the other reads. */
#define RANGES 32
struct units {
    size_t count;
    struct {
        size_t taken;
        char apart[56];
    } ranges[RANGES];
};

/* The next unit of a worker's own range, or of another's when that is used up; 0 when all are. */
static int take(struct units *units, const struct team *team, size_t worker, size_t *unit) {
    size_t ranges = minimum((size_t)(team->threads > 1 ? team->threads : 1), RANGES);
    for (size_t i = 0; i < ranges; i++) {
        size_t range = (worker + i) % ranges, first = units->count * range / ranges;
        *unit = first + __atomic_fetch_add(&units->ranges[range].taken, 1, __ATOMIC_RELAXED);
        if (*unit < units->count * (range + 1) / ranges)
            return 1;
    }
    return 0;
}

static int alone(const struct team *team) { return team->threads < 2 || !team->parallel || !team->barrier; }

static void run(const struct team *team, void (*work)(void *), void *job) {
    if (alone(team))
        work(job);
    else
        team->parallel(work, job, (unsigned)team->threads, 0);
}

/* Bytes read, times tokens: below this a second thread wakes up too late. */
#define SMALL 65536

static struct team enough(const struct team *team, size_t bytes) {
    return bytes < SMALL ? (struct team){0} : *team;
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

#endif
