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

/* output [experts, tokens, width] = down(activation(gate x) * up x); matrices: gate, up, down of each expert in turn.
   `gated` stops before down: one expert's gate and up, output [tokens, inner]. */
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

enum norm { RMS, LAYER };
enum qk_norm { NO_NORM, ALL_HEADS, EACH_HEAD };
enum scoring { SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN };
enum group_score { LARGEST, SUM_OF_TWO };

/* Half a block for one token: x += multiplier * after(something(before(x))). `type` is that of x and of all weights
   that are not packed, FP32 or BF16; `after` may be NULL. */
struct half {
    struct team team;
    int32_t type, format, norm;
    float eps, multiplier;
    const void *before, *after;
    void *x;
    int64_t width;
};

/* Attention of heads that share keys and values in groups. 0: no clip, no softcap; biases and norms may be NULL. */
struct attention {
    struct half half;
    const void *qkv, *qkv_bias, *output, *output_bias;
    int64_t heads, kv_heads, head_dim;
    int32_t qk_norm, interleaved;
    const void *q_norm, *k_norm;
    float clip, softcap, scale;
    const void *cosines, *sines; /* [positions, turned], with the signs of a rotation */
    int64_t turned, position;
    void *keys, *values; /* [kv_heads, rows, head_dim]; the token goes to row `last`, and sees `first` to `last` */
    int64_t rows, first, last;
};

/* weights [experts, width] and bias [experts] in FP32, bias for the choice alone; norm_power 0: no norm */
struct router {
    const float *weights, *bias;
    int64_t experts, active, groups, kept_groups;
    int32_t scoring, group_score;
    float norm_power, norm_epsilon, scaling;
};

/* A mixture and the expert that all tokens share, either of which may be missing (active or shared_inner 0). */
struct mixture {
    struct half half;
    struct router router;
    const void *const *matrices; /* gate, up, down of every expert */
    int64_t inner, shared_inner;
    int32_t activation, shared_activation;
    const void *shared[3]; /* gate, up, down */
    const void *shared_gate;
    float *normed, *logits, *weights, *outputs; /* [width], [experts], [active], [active + 1, width], to be filled */
    int64_t *chosen;                            /* [active], best first */
};

/* Blocks after one another, or one half: either may be NULL. x and threads replace those of the halves. */
struct pass {
    void *x;
    const struct {
        struct attention *attention;
        struct mixture *mixture;
    } *blocks;
    int64_t count;
    int32_t threads;
};

struct tier {
    const char *name;
    enum outcome (*linear)(const struct linear *);
    enum outcome (*feed_forward)(const struct feed_forward *), (*gated)(const struct feed_forward *);
    enum outcome (*pack)(const struct pack *);
    enum outcome (*pass)(const struct pass *);
    enum outcome (*route)(const struct mixture *), (*conclude)(const struct mixture *);
};

#endif
