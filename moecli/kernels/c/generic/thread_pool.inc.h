/* Threads, the numbered tasks they take, and memory for one call. */
#ifndef MOECLI_THREAD_POOL_H
#define MOECLI_THREAD_POOL_H

#include "../native.h"

#include <stdlib.h>

#define INLINE static inline __attribute__((always_inline))

static size_t minimum(size_t a, size_t b) { return a < b ? a : b; }

static size_t ceil_div(size_t whole, size_t part) { return whole / part + (whole % part != 0); }

/* The tasks of one phase of a job, as a range for each thread. Neighbours in memory stay with one thread: two that take
   turns every few pages get half of the bandwidth, for each prefetches what the other reads. */
#define RANGES 32
struct tasks {
    size_t count;
    struct {
        size_t taken;
        char apart[56];
    } ranges[RANGES];
};

/* The next task of a worker's own range, or of another's when that is used up; 0 when all are. */
static int next_task(struct tasks *tasks, const struct thread_pool *pool, size_t worker, size_t *task) {
    size_t ranges = minimum((size_t)(pool->threads > 1 ? pool->threads : 1), RANGES);
    for (size_t i = 0; i < ranges; i++) {
        size_t range = (worker + i) % ranges, first = tasks->count * range / ranges;
        *task = first + __atomic_fetch_add(&tasks->ranges[range].taken, 1, __ATOMIC_RELAXED);
        if (*task < tasks->count * (range + 1) / ranges)
            return 1;
    }
    return 0;
}

static int single_threaded(const struct thread_pool *pool) {
    return pool->threads < 2 || !pool->parallel || !pool->barrier;
}

static void run(const struct thread_pool *pool, void (*work)(void *), void *job) {
    if (single_threaded(pool))
        work(job);
    else
        pool->parallel(work, job, (unsigned)pool->threads, 0);
}

/* Bytes read, times tokens: below this a second thread wakes up too late. */
#define SMALL 65536

static struct thread_pool limit_threads(const struct thread_pool *pool, size_t bytes) {
    return bytes < SMALL ? (struct thread_pool){0} : *pool;
}

/* All threads have finished what comes before. */
static void barrier(const struct thread_pool *pool) {
    if (!single_threaded(pool))
        pool->barrier();
}

/* Aligned to a cache line; NULL where there is no memory. */
static void *allocate(size_t bytes) {
    void *memory;
    return posix_memalign(&memory, 64, bytes + 64) ? NULL : memory;
}

#endif
