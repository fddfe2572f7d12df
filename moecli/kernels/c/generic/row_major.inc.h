/* Rows of plain numbers, int8 codes or nf4 nibbles times activations in float, where they lie.

   Before this an instruction set defines of its LANES floats, beside what matmul.inc.h asks for:

       fused           total + a * b in one rounding
       sum_lanes       the sum of 16 floats, as sum_of has it
       bf16_floats, int8_floats    from numbers one after another; from fp16: scales
       nf4_table       the 16 values of nf4 times the scale of a block; nf4_floats looks nibbles up, high ones first

   and BUFFER_ROWS, how many rows of a buffer meet BUFFER_TOKENS tokens at once.

   A result is the sum over spans of columns from left to right, each the sum of 16 sums side by side: the same for a
   token alone, which meets weights straight from memory, as for many, which share a buffer of weights as floats. */
#ifndef MOECLI_ROW_MAJOR_H
#define MOECLI_ROW_MAJOR_H

#include "matmul.inc.h"
#include "pack.inc.h"

#define SPAN 1024                 /* columns of a sum, a multiple of NF4_BLOCK */
#define SPAN_STRIDE (SPAN + WIDE) /* an odd number of lines, so that rows are in different sets of the cache */
#define ROWS 4                    /* of 16 bits and more that meet a token alone: so many streams from memory */
#define BUFFERED_ROWS 16
#define BUFFER_TOKENS 3
#define EACH_STREAM _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++)
#define EACH_PART _Pragma("GCC unroll 4") for (int v = 0; v < VECTORS; v++)
#define EACH_BUFFERED _Pragma("GCC unroll 8") for (int r = 0; r < BUFFER_ROWS; r++)

static int is_row_major(enum format format) { return format >= PLAIN; }

/* Bytes to a weight, without scales: in nf4 to the one whose nibble comes first. */
INLINE size_t code_bytes(const int format, size_t weights) {
    if (format == NF4)
        return weights / 2;
    return weights * (format == INT8 ? 1 : format == PLAIN + FP32 ? 4 : 2);
}

/* Numbers from token to token: whole groups, and an odd number of lines. */
static size_t token_stride(size_t columns) { return ceil_div(columns, GROUP) * GROUP + WIDE; }

/* The scales of rows or blocks begin behind all codes. */
INLINE const uint8_t *scale_at(const int format, struct shape shape, const uint8_t *matrix, size_t index) {
    return matrix + code_bytes(format, shape.rows * shape.columns + (format == NF4)) + 4 * index;
}

INLINE float float_at(const uint8_t *bytes) {
    float number;
    memcpy(&number, bytes, 4);
    return number;
}

/* A weight, in int8 without the scale of its row. */
static float weight_in(struct shape shape, const uint8_t *matrix, size_t at) {
    if (shape.format == INT8)
        return (float)(int8_t)matrix[at];
    if (shape.format == NF4)
        return normal[matrix[at / 2] >> (at % 2 ? 0 : 4) & 15] * float_at(scale_at(NF4, shape, matrix, at / NF4_BLOCK));
    return weight_at(matrix, (int32_t)shape.format - PLAIN, (int64_t)at);
}

INLINE floats some_weights(const int format, const uint8_t *codes, table values) {
    return format == NF4            ? nf4_floats(values, codes)
           : format == INT8         ? int8_floats(codes)
           : format == PLAIN + BF16 ? bf16_floats(codes)
           : format == PLAIN + FP16 ? scales(codes)
                                    : load((const float *)codes);
}

/* sums [rows] of a few rows, `codes` and in nf4 the `scale` of each first block, times one token from `column` on. */
INLINE void one_span(const int format, const int rows, const uint8_t *const *codes, const uint8_t *const *scale,
                     size_t count, const float *x, float *sums) {
    const size_t step = format == NF4 ? NF4_BLOCK : WIDE;
    floats lanes[ROWS][VECTORS];
    EACH_STREAM
        EACH_PART
            lanes[r][v] = load(zeros);
    for (size_t at = 0; at < count; at += step)
        EACH_STREAM {
            const uint8_t *here = codes[r] + code_bytes(format, at);
            table values = nf4_table(format == NF4 ? float_at(scale[r] + at / NF4_BLOCK * 4) : 0);
            _Pragma("GCC unroll 4") for (size_t i = 0; i < step; i += WIDE) EACH_PART {
                floats weights = some_weights(format, here + code_bytes(format, i + (size_t)(v * LANES)), values);
                lanes[r][v] = fused(lanes[r][v], weights, load(x + at + i + v * LANES));
            }
        }
    EACH_STREAM
        sums[r] += sum_lanes(lanes[r]);
}

/* Whether a token alone meets rows where they lie: they have no odd columns, and in nf4 no block goes across rows. */
static int meets_alone(struct shape shape) { return shape.columns % (shape.format == NF4 ? NF4_BLOCK : WIDE) == 0; }

/* sums [count] of rows from `row` on times one token */
INLINE void one_token(const int format, struct shape shape, const uint8_t *matrix, size_t row, size_t count,
                      const float *x, float *sums) {
    const int rows = format == NF4 || format == INT8 ? 1 : ROWS; /* few bytes of much arithmetic: measured */
    const size_t columns = shape.columns;
    for (size_t first = 0; first < count; first += (size_t)rows) {
        float total[ROWS] = {0};
        for (size_t column = 0; column < columns; column += SPAN) {
            const uint8_t *codes[ROWS], *scale[ROWS];
            size_t width = minimum(SPAN, columns - column);
            EACH_STREAM {
                size_t at = (row + minimum(first + (size_t)r, count - 1)) * columns + column;
                codes[r] = matrix + code_bytes(format, at);
                scale[r] = scale_at(format, shape, matrix, at / NF4_BLOCK);
            }
            one_span(format, rows, codes, scale, width, x + column, total);
        }
        memcpy(sums + first, total, minimum((size_t)rows, count - first) * sizeof *total);
    }
}

/* Weights from `at` on as floats, and zeros up to whole 16. */
INLINE void fill(const int format, struct shape shape, const uint8_t *matrix, size_t at, size_t count, float *to) {
    const size_t step = format == NF4 ? NF4_BLOCK : WIDE;
    size_t i = 0;
    for (; (format != NF4 || at % NF4_BLOCK == 0) && i + step <= count; i += step) {
        const uint8_t *codes = matrix + code_bytes(format, at + i);
        table values = nf4_table(format == NF4 ? float_at(scale_at(NF4, shape, matrix, (at + i) / NF4_BLOCK)) : 0);
        _Pragma("GCC unroll 8") for (size_t part = 0; part < step; part += LANES)
            store(to + i + part, some_weights(format, codes + code_bytes(format, part), values));
    }
    for (; i < count; i++)
        to[i] = weight_in(shape, matrix, at + i);
    for (; i % WIDE; i++)
        to[i] = 0;
}

/* out [tokens, BUFFER_ROWS] += rows of a buffer times tokens, over columns in whole 16 */
INLINE void meet(const float *buffer, const float *x, size_t stride, size_t columns, float *out, const int tokens) {
    floats lanes[BUFFER_ROWS][BUFFER_TOKENS][VECTORS];
    for (int v = 0; v < VECTORS; v++) {
        const float *weights = buffer + v * LANES, *numbers = x + v * LANES;
        floats sums[BUFFER_ROWS][BUFFER_TOKENS];
        EACH_BUFFERED
            EACH_TOKEN
                sums[r][t] = load(zeros);
        for (size_t i = 0; i < columns; i += WIDE) {
            floats of_token[BUFFER_TOKENS];
            EACH_TOKEN
                of_token[t] = load(numbers + (size_t)t * stride + i);
            EACH_BUFFERED {
                floats of_row = load(weights + r * SPAN_STRIDE + i);
                EACH_TOKEN
                    sums[r][t] = fused(sums[r][t], of_row, of_token[t]);
            }
        }
        EACH_BUFFERED
            EACH_TOKEN
                lanes[r][t][v] = sums[r][t];
    }
    EACH_TOKEN
        EACH_BUFFERED
            out[t * TASK_ROWS + r] += sum_lanes(lanes[r][t]);
}

typedef void one_token_kernel(struct shape, const uint8_t *matrix, size_t row, size_t count, const float *x,
                              float *sums);
typedef void fill_kernel(struct shape, const uint8_t *matrix, size_t at, size_t count, float *to);
typedef void meet_kernel(const float *buffer, const float *x, size_t stride, size_t columns, float *out);

#define ROW_MAJOR(name, format)                                                                                        \
    static void one_token_##name(struct shape shape, const uint8_t *matrix, size_t row, size_t count, const float *x,  \
                                 float *sums) {                                                                        \
        one_token(format, shape, matrix, row, count, x, sums);                                                         \
    }                                                                                                                  \
    static void fill_##name(struct shape shape, const uint8_t *matrix, size_t at, size_t count, float *to) {           \
        fill(format, shape, matrix, at, count, to);                                                                    \
    }
ROW_MAJOR(fp32, PLAIN + FP32)
ROW_MAJOR(bf16, PLAIN + BF16)
ROW_MAJOR(fp16, PLAIN + FP16)
ROW_MAJOR(int8, INT8)
ROW_MAJOR(nf4, NF4)
#define MEET(tokens)                                                                                                   \
    static void meet_##tokens(const float *buffer, const float *x, size_t stride, size_t columns, float *out) {        \
        meet(buffer, x, stride, columns, out, tokens);                                                                 \
    }
MEET(1)
MEET(2)
MEET(3)
static const struct {
    one_token_kernel *one_token;
    fill_kernel *fill;
} row_major[] = {{one_token_fp32, fill_fp32},
                 {one_token_bf16, fill_bf16},
                 {one_token_fp16, fill_fp16},
                 {one_token_int8, fill_int8},
                 {one_token_nf4, fill_nf4}};
static meet_kernel *const meet_kernels[BUFFER_TOKENS] = {meet_1, meet_2, meet_3};

/* sums [tokens, 32] of `count` rows from `row` on. `buffer` has room for BUFFERED_ROWS spans. */
static void row_major_product(struct shape shape, const uint8_t *matrix, size_t row, size_t count, const float *x,
                              size_t tokens, float *sums, float *buffer) {
    const size_t stride = token_stride(shape.columns), kind = shape.format - PLAIN;
    memset(sums, 0, tokens * TASK_ROWS * sizeof *sums);
    if (tokens == 1 && meets_alone(shape))
        row_major[kind].one_token(shape, matrix, row, count, x, sums);
    else
        for (size_t first = 0; first < count; first += BUFFERED_ROWS)
            for (size_t column = 0; column < shape.columns; column += SPAN) {
                size_t width = minimum(SPAN, shape.columns - column), rows = minimum(BUFFERED_ROWS, count - first);
                size_t wide = ceil_div(width, WIDE) * WIDE, whole = ceil_div(rows, BUFFER_ROWS) * BUFFER_ROWS;
                for (size_t r = 0; r < rows; r++)
                    row_major[kind].fill(shape, matrix, (row + first + r) * shape.columns + column, width,
                                         buffer + r * SPAN_STRIDE);
                memset(buffer + rows * SPAN_STRIDE, 0, (whole - rows) * SPAN_STRIDE * sizeof *buffer);
                for (size_t token = 0; token < tokens; token += BUFFER_TOKENS)
                    for (size_t r = 0; r < rows; r += BUFFER_ROWS)
                        meet_kernels[minimum(BUFFER_TOKENS, tokens - token) - 1](
                            buffer + r * SPAN_STRIDE, x + token * stride + column, stride, wide,
                            sums + token * TASK_ROWS + first + r);
            }
    for (size_t r = 0; shape.format == INT8 && r < count; r++) {
        float scale = float_at(scale_at(INT8, shape, matrix, row + r)) * (1 / 127.0f);
        for (size_t token = 0; token < tokens; token++)
            sums[token * TASK_ROWS + r] *= scale;
    }
}

#endif
