/* What the library shares with Python and its instruction sets with each other: the calls and their structures.

   Python mirrors the structures in kernels/abi.py; layout.h tells it where every field is. */
#ifndef MOECLI_NATIVE_H
#define MOECLI_NATIVE_H

#include <stddef.h>
#include <stdint.h>

/* The layouts are those of formats/. Those up to Q8 lie in tiles, the others row after row; PLAIN + a number: rows of
   it. Q4 and Q3 are codebooks, of 16 and 8 codes times multiples of a scale; MXFP4, Q4_0 and IQ4_NL of 16 codes times
   a scale for each group of 32 columns. */
enum format { Q4, Q3, MXFP4, Q4_0, IQ4_NL, Q8, PLAIN, INT8 = PLAIN + 3, NF4 };
#define PANEL_ROWS 16 /* that lie together, tile after tile */
#define Q8_TILE 544   /* bytes: 16 rows x 32 columns */
#define SCALED 256    /* columns of a codebook that share an fp16 scale */
#define Q4_CODES {-31, -25, -20, -15, -11, -8, -5, -2, 0, 3, 6, 9, 12, 16, 21, 28}
#define Q3_CODES {-31, -19, -11, -5, 0, 6, 13, 22, -31, -19, -11, -5, 0, 6, 13, 22} /* a fourth bit does not matter */
#define MXFP4_CODES {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}
#define Q4_0_CODES {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7}
#define IQ4_NL_CODES {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}
#define MULTIPLES {2, 3, 5, 6, 7, 8, 9, 10, -2, -3, -5, -6, -7, -8, -9, -10}
#define NF4_BLOCK 64 /* weights that share a scale, row after row */
#define NORMAL_FLOAT                                                                                                   \
    {-1.0f,                                                                                                            \
     -0.6961928009986877f,                                                                                             \
     -0.5250730514526367f,                                                                                             \
     -0.39491748809814453f,                                                                                            \
     -0.28444138169288635f,                                                                                            \
     -0.18477343022823334f,                                                                                            \
     -0.09105003625154495f,                                                                                            \
     0.0f,                                                                                                             \
     0.07958029955625534f,                                                                                             \
     0.16093020141124725f,                                                                                             \
     0.24611230194568634f,                                                                                             \
     0.33791524171829224f,                                                                                             \
     0.44070982933044434f,                                                                                             \
     0.5626170039176941f,                                                                                              \
     0.7229568362236023f,                                                                                              \
     1.0f}

enum number { FP32, BF16, FP16 };
enum activation { SILU, GELU, GELU_TANH, RELU, RELU_SQUARED, CLAMPED_SWIGLU, SILU_TO_7, SILU_TO_16 };
enum status { DONE, NO_MEMORY, NOT_FINITE, TOO_LARGE };

/* The OpenMP runtime of torch, by two of its entry points; without them all work is done by the caller. */
struct thread_pool {
    void (*parallel)(void (*work)(void *), void *argument, unsigned threads, unsigned flags);
    void (*barrier)(void);
    int32_t threads;
};

/* Dense rows of numbers, one per token. */
struct tokens {
    const void *data;
    int32_t type;
    int64_t count, columns;
};

/* output [tokens, rows] = input times packed [rows, columns], in the type of the input */
struct linear {
    struct thread_pool pool;
    int32_t format;
    struct tokens input;
    const void *packed;
    int64_t rows;
    void *output;
};

/* output [experts, tokens, hidden_size] = down(activation(gate x) * up x); matrices: gate, up, down of each expert in
   turn, without a gate (NULL) down(activation(up x)); `stacked`: gate and up are both one matrix [2 intermediate_size,
   hidden_size], its upper and its lower half. `biases`, which may be NULL, are added to the products of these matrices
   in the same order, numbers of `bias_type`. `gated` stops before down: one expert's gate and up, output [tokens,
   intermediate_size]. */
struct feed_forward {
    struct thread_pool pool;
    int32_t format, activation, stacked, bias_type;
    struct tokens input;
    const void *const *matrices, *const *biases;
    int64_t experts, intermediate_size;
    float *output;
};

/* sums [tokens, hidden_size] += what each of some experts makes of the tokens that take it, times their weights.

   `each` has the tokens and the experts' matrices; `counts` says how many tokens take an expert, `rows` which, and
   `weights` by how much, those of one expert after those of the other. Expert is added after expert, a product rounded
   before its sum; at most `at_once` rows of one are computed together. */
struct weighted_sum {
    struct feed_forward each;
    const int64_t *counts, *rows;
    const float *weights;
    int64_t at_once;
    float *sums;
};

/* packed = the bytes of a matrix [rows, columns]; strides in numbers */
struct pack {
    struct thread_pool pool;
    int32_t format, type;
    const void *weights;
    int64_t rows, columns, row_stride, column_stride;
    void *packed;
};

/* packed = the bytes of a matrix [rows, columns] of MXFP4, Q4_0 or IQ4_NL, from groups of 32 columns as these are
   published: 16 bytes of indices, two columns to each, neighbours if `paired`, else 16 apart; and a scale, a byte or
   fp16. Strides in bytes, from row to row and from group to group. */
struct repack {
    int32_t format, paired;
    const void *indices, *scales;
    int64_t rows, columns;
    int64_t row_stride, group_stride, scale_row_stride, scale_group_stride;
    void *packed;
};

enum norm { RMS, LAYER, ZERO_CENTRED }; /* the last: RMS whose weights lack 1 */
enum qk_norm { NO_NORM, ALL_HEADS, EACH_HEAD, EACH_ROTATED_HEAD };
enum gate { GATE_SIGMOID, GATE_SOFTPLUS };
enum scoring { SOFTMAX, SIGMOID, SOFTMAX_OF_TOPK, SIGMOID_INPUT, SPARSEMIXER };
enum group_score { LARGEST, SUM_OF_TWO };

/* Attention or feed-forward of a block for a few tokens, each for itself: x = scale * (x + multiplier *
   after(something(before(x)))), or, unless `kept` is 0, scale * (kept * before(x) + ...). x [tokens, hidden_size];
   `type` is that of x and of all weights that are not multiplied with; `after` and the bias of `before` may be NULL. */
struct sublayer {
    struct thread_pool pool;
    int32_t type, format, norm;
    float eps, multiplier, scale, kept;
    const void *before, *before_bias, *after;
    void *x;
    int64_t hidden_size, tokens;
};

/* Where a token stands: its row of the tables [positions, rotary_dim], with the signs of a rotation, and of the cache
   [heads, rows, numbers]. The token goes to row `last`, and sees `first` to `last`; its queries are multiplied. Without
   tables nothing is rotated. */
struct place {
    const void *cosines, *sines;
    int64_t position;
    void *keys, *values;
    int64_t rows, first, last;
    float query_scale;
};

/* Attention of heads that share keys and values in groups. 0: no clip, no softcap; biases, norms and sinks may be NULL.
   `keys_as_values`: values are what keys are before norm and rotation, and qkv makes none. `gate` [gate_width,
   hidden_size] makes a factor of each head's result, or of each number of it; NULL: none. A sink is a score of its
   head, [heads], that takes its part of the softmax and has no value. */
struct attention {
    struct sublayer sublayer;
    const void *qkv, *qkv_bias, *output, *output_bias, *gate;
    int64_t heads, kv_heads, head_dim, value_dim, rotary_dim, gate_width;
    int32_t qk_norm, interleaved, keys_as_values, value_norm, gate_kind;
    const void *q_norm, *k_norm, *sinks;
    float clip, softcap, scale, value_scale;
    const struct place *places; /* of each token, of one text or of several */
};

/* Attention whose cache has no values, but latents of `rank` numbers and one rotating key that all heads share, as
   `keys`. `query` makes [heads, nope_dim + rotary_dim], of the hidden state or, with a query_rank, of `query_down`
   times it; `latent_down` [rank + rotary_dim, hidden_size]. `expansion` as in prompt_attention. Biases may be NULL, and
   the gate [gate_width, hidden_size], whose factors are as in attention. */
struct latent_attention {
    struct sublayer sublayer;
    const void *query, *query_down, *query_down_bias, *query_norm;
    const void *latent_down, *latent_down_bias, *latent_norm, *expansion, *output, *output_bias, *gate;
    int64_t heads, query_rank, rank, nope_dim, rotary_dim, value_dim, gate_width;
    int32_t interleaved;
    float norm_eps, scale;
    const struct place *places;
};

/* output [tokens, heads, value_dim]: queries [tokens, heads, head_dim] over keys [kv_heads, rows, head_dim] and values
   [kv_heads, rows, value_dim], all numbers of one `type`. The first query stands at position `start`, row 0 of keys and
   values at `first`; a query sees the keys up to its own position, of them the last `window`. 0: no window, no cap.
   `sinks` as in attention. `query_stride`: numbers from token to token.

   With a `rank` the keys are latents [rows, rank + head_dim - nope_dim], there are no values, and `expansion` [heads,
   nope_dim + value_dim, rank] makes of a latent's first `rank` numbers the first `nope_dim` of a head's key, and its
   value. kv_heads 1: it is made part of queries and results; kv_heads = heads: keys and values are expanded. */
struct prompt_attention {
    struct thread_pool pool;
    int32_t type;
    const void *queries, *keys, *values, *expansion, *sinks;
    void *output;
    int64_t tokens, heads, kv_heads, head_dim, value_dim, rows, query_stride, rank, nope_dim;
    int64_t start, first, window;
    float scale, softcap;
};

enum recurrence { DELTA_NET, SHORT_CONVOLUTION, MAMBA, MAMBA2, CHANNEL_DELTA, LIGHTNING };

/* What one layer remembers of one text: what the convolution saw last [kernel - 1, channels] and the state. A step
   whose tokens may be forgotten does not `commit`: it leaves the state, and what it would have seen behind `rows` and
   in `record`. The next step comes after the first `kept` of these tokens. See recurrent.inc.h for their widths. */
struct history {
    float *rows, *state, *record;
    int64_t kept, commits;
};

/* A mixer with a state. `in` and `out` are in the sublayer's format, `gates` (of DELTA_NET: two numbers for each head;
   of CHANNEL_DELTA one, and `rank` each for `step` and `gate`), `select` and `step` (of MAMBA and CHANNEL_DELTA) and
   `gate` in its type, everything else in FP32. conv [kernel, channels], none of LIGHTNING; decay, negative: [heads], of
   MAMBA as the state lies; step_bias and skip [heads], of MAMBA and CHANNEL_DELTA [heads * head_dim]. Biases may be
   NULL, and what a kind does not have. `groups` are heads that share what writes and reads the state. Without a `rank`
   CHANNEL_DELTA's `in` makes the inputs of `step` and `gate` too; unless 0, `floor` is the least logarithm of its
   decays. */
struct recurrent {
    struct sublayer sublayer;
    int32_t kind;
    const void *in, *in_bias, *gates, *select, *step, *gate, *out, *out_bias;
    const float *conv, *conv_bias, *decay, *step_bias, *skip, *norm, *step_norm, *write_norm, *read_norm;
    int64_t heads, head_dim, groups, state_dim, kernel, rank;
    float norm_eps, floor;
    const struct history *histories; /* of each text, which has as many of the tokens as the others */
    int64_t texts;
    /* For whoever has projected the tokens of one text: in, gates, and what is to be multiplied by out */
    const float *projected, *gated;
    float *mixed;
};

/* weights [experts, hidden_size], linear_bias and bias [experts] in FP32, bias for the choice alone; norm_power 0: no
   norm; softcap 0: no cap. With an `input_scale` [hidden_size] it reads the hidden state divided by the root of its
   mean square, times that. `expert_scale` [experts] multiplies the weights. All but the weights may be NULL. */
struct router {
    const float *weights, *linear_bias, *bias, *input_scale, *expert_scale;
    int64_t experts, top_k, n_group, topk_group;
    int32_t scoring, group_score;
    float norm_power, norm_epsilon, norm_floor, scaling, softcap, jitter;
};

/* Routed experts and the expert that all tokens share, either of which may be missing (top_k or
   shared_intermediate_size 0). With a norm of its own before it, that one reads the hidden state and not what the
   sublayer's norm leaves of it; the norms after them come before the sum. `reads_input`: the routed experts read the
   hidden state as it was before the block's attention. */
struct moe {
    struct sublayer sublayer;
    struct router router;
    const void *const *matrices, *const *biases; /* gate, up, down of every expert; biases may be NULL */
    int64_t intermediate_size, shared_intermediate_size;
    int32_t activation, shared_activation, reads_input;
    float shared_scale;
    const void *shared_gate_up, *shared_down;                /* gate and up stacked */
    const void *shared_up;                                   /* instead of both, where the shared expert has no gate */
    const void *shared_gate;                                 /* of the shared expert as a whole; may be NULL */
    const void *shared_before, *shared_after, *routed_after; /* norms; may be NULL */
    /* To be filled for each token: [hidden_size], [experts], [top_k] best first, [top_k, hidden_size] and then the sums
       of all tokens [hidden_size], [top_k] */
    float *normed, *logits, *topk_weights, *outputs;
    int64_t *topk_ids;
};

/* One kind of attention at most, or a recurrent mixer; whatever is missing is NULL. */
struct block {
    struct attention *attention;
    struct latent_attention *latent_attention;
    struct recurrent *recurrent;
    struct moe *moe;
};

/* A few tokens through blocks, one after another. x, tokens and threads replace those of the sublayers. */
struct decode_step {
    void *x;
    const struct block *blocks;
    int64_t count, tokens;
    int32_t threads;
};

/* An instruction set: its name and every call, compiled for it. */
struct isa {
    const char *name;
    enum status (*linear)(const struct linear *);
    enum status (*feed_forward)(const struct feed_forward *), (*gated)(const struct feed_forward *);
    enum status (*weighted_sum)(const struct weighted_sum *);
    enum status (*pack)(const struct pack *);
    enum status (*repack)(const struct repack *);
    enum status (*decode_step)(const struct decode_step *);
    enum status (*route)(const struct moe *), (*combine)(const struct moe *);
    enum status (*prompt_attention)(const struct prompt_attention *);
    enum status (*mix)(const struct recurrent *);
};

#endif
