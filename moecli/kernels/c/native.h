/* What the tiers of the native kernels share: the calls they answer, and how work is handed to threads. */
#ifndef MOECLI_NATIVE_H
#define MOECLI_NATIVE_H

#include <stddef.h>
#include <stdint.h>

enum format { Q4, Q8, BUFFERED };
/* The layouts are those of formats/q4.py and q8.py. */
#define Q4_TILE 1088 /* bytes: 16 rows x 128 columns */
#define Q8_TILE 544  /* 16 rows x 32 columns */
#define CODEBOOK {-127, -96, -75, -59, -46, -34, -22, -10, 1, 13, 24, 36, 49, 64, 83, 110}

enum number { FP32, BF16, FP16 };
enum activation { SILU, GELU, GELU_TANH, RELU };
enum outcome { DONE, NO_MEMORY, NOT_FINITE, TOO_LARGE };

/* The OpenMP runtime of torch, by two of its entry points; without them all work is done by the caller. */
struct team {
    void (*parallel)(void (*work)(void *), void *argument, unsigned threads, unsigned flags);
    void (*barrier)(void);
    int32_t threads;
};

/* Dense rows of numbers, one per token; `type` is FP32 or BF16. */
struct tokens {
    const void *numbers;
    int32_t type;
    int64_t count, width;
};

/* output [tokens, rows] = input times packed [rows, width], in the type of the input */
struct linear {
    struct team team;
    int32_t format;
    struct tokens input;
    const void *packed;
    int64_t rows;
    void *output;
};

/* output [experts, tokens, width] = down(activation(gate x) * up x); matrices: gate, up, down of each expert in turn */
struct feed_forward {
    struct team team;
    int32_t format, activation;
    struct tokens input;
    const void *const *matrices;
    int64_t experts, inner;
    float *output;
};

/* packed = the bytes of a matrix [rows, columns]; strides in numbers */
struct pack {
    struct team team;
    int32_t format, type;
    const void *weights;
    int64_t rows, columns, row_stride, column_stride;
    void *packed;
};

struct tier {
    const char *name;
    enum outcome (*linear)(const struct linear *);
    enum outcome (*feed_forward)(const struct feed_forward *);
    enum outcome (*pack)(const struct pack *);
};

#endif
