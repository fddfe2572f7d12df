/* Packed rows times quantised activations.

   Before this an instruction set defines a vector of LANES rows (a divisor of 16):

       codes    4 columns of each row, a byte each; `ints` and `floats`, one number a row
       nibble_codes, q3_codes, q8_codes    the codes of a line, those of nibbles by a table, `wide` as those of q8;
                               load_codes, store_codes    those codes in a buffer
       q8_start, book_start    the sum before the first product, given the start of the activations: that, or 0 if
                               codes are signed
       q8_dot   adds 4 products a row to it, exactly; book_dot    8 products, of two lines of a codebook
       scales, load, store    floats from fp16 and from floats, and to floats
       powers   128 times the powers of two that bytes stand for
       multiples    of a panel for two halves of a group, by a byte a row
       add      sum + (dot * activation scale) * scale, the last two in one rounding
       to_floats, times, add_product, fused    of integers; a product; a sum and a product in one rounding

   and PANELS and TOKENS (1, 4 or 6), how many are taken at once: panels only from a buffer that tokens share, since a
   thread reads memory fastest as one stream, without prefetching by hand. Each sum adds the groups of 32 from left to
   right whatever the number of tokens and rows, and so is the same on every instruction set: in q8 times their scale,
   of a codebook those that share one first. There 16 products, an integer below 2**17, times a multiple are
   exact. Codebooks whose groups have a scale of their own take it for both multiples, and 1 for the scale; but for
   IQ4_NL, whose codes are too large for book_dot: its groups are computed as those of q8. */
#ifndef MOECLI_MATMUL_H
#define MOECLI_MATMUL_H

#include "numbers.inc.h"

#define TASK_ROWS 32 /* rows of a task: two panels, and one group of the next matrix */
#define LINE 64      /* bytes of 4 columns of a panel, or of 16 floats */
#define UNPACKED 640 /* bytes of a group of a panel in a buffer: 8 lines, then 16 scales or twice 16 multiples */
#define CHUNK 16     /* groups in a buffer at once: a tile of a codebook, whose scales lie behind them */
#define SCALED_GROUPS (SCALED / GROUP)
#define PANEL_CHUNK (CHUNK * UNPACKED + CHUNK / SCALED_GROUPS * LINE)

/* Kinds of kernels beside Q4, Q3 and Q8. */
enum { BUFFERED_BOOK = Q8 + 1, BUFFERED_Q8, KINDS };

struct shape {
    enum format format;
    size_t rows, columns;
};

static size_t groups_across(struct shape shape) { return ceil_div(shape.columns, GROUP); }

/* Of a group of a codebook: 4 lines of two nibbles a byte; 2 of four lower bits, then 1 of eight higher ones. */
INLINE size_t index_bytes(const int format) { return format == Q3 ? 3 * LINE : 4 * LINE; }

/* Whether its multiples are of a scale that 8 groups share. */
INLINE int has_multiples(const int format) { return format == Q4 || format == Q3; }

/* Of a group: a byte of multiples a row or, where it has a scale of its own, that. */
INLINE size_t multiple_bytes(const int format) {
    return format == Q4_0 || format == IQ4_NL ? 2 * PANEL_ROWS : PANEL_ROWS;
}

/* From group to group: an fp16 scale of its own lies before its lines, so that memory is read in one go. */
INLINE size_t line_stride(const int format) {
    return index_bytes(format) + (multiple_bytes(format) > PANEL_ROWS ? multiple_bytes(format) : 0);
}

INLINE size_t multiple_stride(const int format) {
    return multiple_bytes(format) > PANEL_ROWS ? line_stride(format) : multiple_bytes(format);
}

INLINE size_t scale_bytes(const int format, size_t groups) {
    return has_multiples(format) ? ceil_div(groups, SCALED_GROUPS) * 2 * PANEL_ROWS : 0;
}

/* Bytes of the first groups of a panel: whole tiles, or all of them. */
INLINE size_t groups_bytes(const int format, size_t groups) {
    if (format == Q8)
        return groups * Q8_TILE;
    return groups * (index_bytes(format) + multiple_bytes(format)) + scale_bytes(format, groups);
}

/* A tile of a codebook: fp16 scales, a row for each 8 groups, then multiples or scales and lines of indices for each
   group. */
struct tile {
    const uint8_t *scales, *multiples, *lines;
};

INLINE struct tile tile_of(const int format, const uint8_t *packed, size_t groups) {
    const uint8_t *multiples = packed + scale_bytes(format, groups);
    size_t own = multiple_bytes(format) > PANEL_ROWS ? 1 : groups;
    return (struct tile){packed, multiples, multiples + own * multiple_bytes(format)};
}

static size_t panel_bytes(struct shape shape) { return groups_bytes((int)shape.format, groups_across(shape)); }

#define VECTORS (PANEL_ROWS / LANES) /* of a panel */
#define EACH_VECTOR _Pragma("GCC unroll 4") for (int v = 0; v < vectors; v++)
#define EACH_TOKEN _Pragma("GCC unroll 6") for (int t = 0; t < tokens; t++)

#define EACH_PAIR _Pragma("GCC unroll 2") for (int j = 0; j < 4; j += 2) /* of 4 lines of codes, for 16 columns */

typedef ints counts[PANELS * VECTORS][TOKENS];
typedef floats totals[PANELS * VECTORS][TOKENS];

INLINE const int8_t *activations(const uint8_t *group, int token, int line) {
    return (const int8_t *)group + token * GROUP + 4 * line;
}

INLINE float activation_scale(const uint8_t *group, const int tokens, int token) {
    float scale;
    memcpy(&scale, group + tokens * GROUP + token * 4, 4);
    return scale;
}

INLINE int32_t start_of(const uint8_t *group, const int tokens, int token, int half) {
    int32_t start;
    memcpy(&start, group + tokens * (GROUP + 4) + (half * tokens + token) * 4, 4);
    return start;
}

INLINE void q8_begin(counts sums, const uint8_t *group, const int vectors, const int tokens) {
    EACH_TOKEN {
        int32_t start = 4 * (start_of(group, tokens, t, 0) + start_of(group, tokens, t, 1));
        EACH_VECTOR
            sums[v][t] = q8_start(start);
    }
}

INLINE void q8_finish(totals sums, counts group_sums, const uint8_t *group, const floats *scale, const int vectors,
                      const int tokens) {
    EACH_TOKEN {
        float factor = activation_scale(group, tokens, t);
        EACH_VECTOR
            sums[v][t] = add(sums[v][t], group_sums[v][t], factor, scale[v]);
    }
}

INLINE void book_begin(counts sums, const uint8_t *group, int half, const int vectors, const int tokens) {
    EACH_TOKEN {
        ints start = book_start(start_of(group, tokens, t, half));
        EACH_VECTOR
            sums[v][t] = start;
    }
}

INLINE void book_finish(totals sums, counts products, const uint8_t *group, const floats *multiple, const int vectors,
                        const int tokens) {
    EACH_TOKEN {
        float factor = activation_scale(group, tokens, t);
        EACH_VECTOR
            sums[v][t] = add_product(sums[v][t], times(to_floats(products[v][t]), multiple[v]), factor);
    }
}

/* Lines j of the codes of either half of a group's columns. */
INLINE void book_codes(const int format, const uint8_t *lines, int v, const int j, codes *low, codes *high) {
    const uint8_t *line = lines + v * LANES * 4;
    if (format != Q3) {
        nibble_codes(format == Q4      ? q4_table
                     : format == MXFP4 ? mxfp4_table
                                       : q4_0_table,
                     0, line + j * LINE, low, high);
    } else {
        *low = q3_codes(line + j / 2 * LINE, line + 2 * LINE, 2 * j);
        *high = q3_codes(line + j / 2 * LINE, line + 2 * LINE, 2 * j + 1);
    }
}

/* The scale of a group as those of q8 are, times 128. */
INLINE floats own_scale(const int format, const uint8_t *bytes, int v) {
    static const float as_q8[WIDE] = {128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128};
    return format == MXFP4 ? powers(bytes + v * LANES) : times(scales(bytes + v * LANES * 2), load(as_q8));
}

INLINE void both_multiples(const int format, const uint8_t *bytes, floats *first, floats *second) {
    const int vectors = VECTORS;
    if (has_multiples(format))
        multiples(bytes, first, second);
    else
        EACH_VECTOR
            first[v] = second[v] = own_scale(format, bytes, v);
}

INLINE floats shared_scale(const int format, struct tile tile, int v) {
    return has_multiples(format) ? scales(tile.scales + v * LANES * 2) : load(ones);
}

/* 32 columns of a panel. */
INLINE void book_group(const int format, const uint8_t *lines, const uint8_t *bytes, const uint8_t *group, totals sums,
                       const int tokens) {
    const int vectors = VECTORS;
    counts low, high;
    floats first[VECTORS], second[VECTORS];
    book_begin(low, group, 0, vectors, tokens);
    book_begin(high, group, 1, vectors, tokens);
    EACH_PAIR
    EACH_VECTOR {
        codes lows[2], highs[2];
        book_codes(format, lines, v, j, &lows[0], &highs[0]);
        book_codes(format, lines, v, j + 1, &lows[1], &highs[1]);
        EACH_TOKEN {
            low[v][t] = book_dot(low[v][t], lows[0], lows[1], activations(group, t, j));
            high[v][t] = book_dot(high[v][t], highs[0], highs[1], activations(group, t, j + 4));
        }
    }
    both_multiples(format, bytes, first, second);
    book_finish(sums, low, group, first, vectors, tokens);
    book_finish(sums, high, group, second, vectors, tokens);
}

/* 32 columns of a panel. */
INLINE void q8_group(const uint8_t *tile, const uint8_t *group, totals sums, const int tokens) {
    const int vectors = VECTORS;
    counts group_sums;
    floats scale[VECTORS];
    q8_begin(group_sums, group, vectors, tokens);
    _Pragma("GCC unroll 8") for (int j = 0; j < 8; j++) EACH_VECTOR {
        codes line = q8_codes(tile + 32 + j * LINE + v * LANES * 4);
        EACH_TOKEN
            group_sums[v][t] = q8_dot(group_sums[v][t], line, activations(group, t, j));
    }
    EACH_VECTOR
        scale[v] = scales(tile + v * LANES * 2);
    q8_finish(sums, group_sums, group, scale, vectors, tokens);
}

/* 32 columns of a panel of IQ4_NL. */
INLINE void wide_group(const uint8_t *lines, const uint8_t *bytes, const uint8_t *group, totals sums,
                       const int tokens) {
    const int vectors = VECTORS;
    counts group_sums;
    floats scale[VECTORS];
    q8_begin(group_sums, group, vectors, tokens);
    _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) EACH_VECTOR {
        codes low, high;
        nibble_codes(iq4_nl_table, 1, lines + j * LINE + v * LANES * 4, &low, &high);
        EACH_TOKEN {
            group_sums[v][t] = q8_dot(group_sums[v][t], low, activations(group, t, j));
            group_sums[v][t] = q8_dot(group_sums[v][t], high, activations(group, t, j + 4));
        }
    }
    EACH_VECTOR
        scale[v] = own_scale(IQ4_NL, bytes, v);
    q8_finish(sums, group_sums, group, scale, vectors, tokens);
}

/* Of PANELS panels in a buffer, `stride` from one to the next: a line, or numbers behind all lines. */
INLINE codes buffered_line(const uint8_t *buffer, size_t stride, int v, int line) {
    return load_codes(buffer + v / VECTORS * stride + line * LINE + v % VECTORS * LANES * 4);
}

INLINE void buffered_numbers(floats *numbers, const uint8_t *buffer, size_t stride) {
    const int vectors = PANELS * VECTORS;
    EACH_VECTOR
        numbers[v] = load((const float *)(buffer + v / VECTORS * stride) + v % VECTORS * LANES);
}

/* 32 columns of PANELS panels in a buffer. */
INLINE void buffered_book_group(const uint8_t *buffer, size_t stride, const uint8_t *group, totals sums,
                                const int tokens) {
    const int vectors = PANELS * VECTORS;
    _Pragma("GCC unroll 2") for (int half = 0; half < 2; half++) {
        counts products;
        floats multiple[PANELS * VECTORS];
        book_begin(products, group, half, vectors, tokens);
        EACH_PAIR {
            const int line = half * 4 + j;
            codes first[PANELS * VECTORS], second[PANELS * VECTORS];
            EACH_VECTOR {
                first[v] = buffered_line(buffer, stride, v, line);
                second[v] = buffered_line(buffer, stride, v, line + 1);
            }
            EACH_TOKEN
                EACH_VECTOR
                    products[v][t] = book_dot(products[v][t], first[v], second[v], activations(group, t, line));
        }
        buffered_numbers(multiple, buffer + (8 + half) * LINE, stride);
        book_finish(sums, products, group, multiple, vectors, tokens);
    }
}

INLINE void buffered_q8_group(const uint8_t *buffer, size_t stride, const uint8_t *group, totals sums,
                              const int tokens) {
    const int vectors = PANELS * VECTORS;
    counts group_sums;
    floats scale[PANELS * VECTORS];
    q8_begin(group_sums, group, vectors, tokens);
    _Pragma("GCC unroll 8") for (int j = 0; j < 8; j++) {
        codes line[PANELS * VECTORS];
        EACH_VECTOR
            line[v] = buffered_line(buffer, stride, v, j);
        EACH_TOKEN
            EACH_VECTOR
                group_sums[v][t] = q8_dot(group_sums[v][t], line[v], activations(group, t, j));
    }
    buffered_numbers(scale, buffer + 8 * LINE, stride);
    q8_finish(sums, group_sums, group, scale, vectors, tokens);
}

/* Up to 8 groups that share a scale: sums += their products. */
INLINE void book_scaled(const int format, struct tile tile, size_t groups, const uint8_t *group, totals sums,
                        const int tokens) {
    const int vectors = VECTORS;
    totals group_sums;
    EACH_TOKEN
        EACH_VECTOR
            group_sums[v][t] = load(zeros);
    for (; groups; groups--, group += (size_t)tokens * GROUP_BYTES) {
        book_group(format, tile.lines, tile.multiples, group, group_sums, tokens);
        tile.lines += line_stride(format);
        tile.multiples += multiple_stride(format);
    }
    EACH_VECTOR {
        floats scale = shared_scale(format, tile, v);
        EACH_TOKEN
            sums[v][t] = fused(sums[v][t], group_sums[v][t], scale);
    }
}

INLINE void buffered_book_scaled(const uint8_t *buffer, const uint8_t *scale_line, size_t stride, size_t groups,
                                 const uint8_t *group, totals sums, const int tokens) {
    const int vectors = PANELS * VECTORS;
    totals group_sums;
    EACH_TOKEN
        EACH_VECTOR
            group_sums[v][t] = load(zeros);
    floats scale[PANELS * VECTORS];
    for (; groups; groups--, buffer += UNPACKED, group += (size_t)tokens * GROUP_BYTES)
        buffered_book_group(buffer, stride, group, group_sums, tokens);
    buffered_numbers(scale, scale_line, stride);
    EACH_TOKEN
        EACH_VECTOR
            sums[v][t] = fused(sums[v][t], group_sums[v][t], scale[v]);
}

/* A tile, or a buffer of it: the groups of two scales at most. */
INLINE void book_tile(const int kind, const uint8_t *packed, size_t stride, size_t groups, const uint8_t *group,
                      totals sums, const int tokens) {
    struct tile tile = tile_of(kind, packed, groups);
    for (size_t first = 0; first < groups; first += SCALED_GROUPS) {
        size_t some = minimum(SCALED_GROUPS, groups - first);
        if (kind == BUFFERED_BOOK)
            buffered_book_scaled(packed + first * UNPACKED, packed + CHUNK * UNPACKED + first / SCALED_GROUPS * LINE,
                                 stride, some, group, sums, tokens);
        else
            book_scaled(kind, tile, some, group, sums, tokens);
        tile.scales += 2 * PANEL_ROWS;
        tile.multiples += SCALED_GROUPS * multiple_stride(kind);
        tile.lines += SCALED_GROUPS * line_stride(kind);
        group += (size_t)tokens * SCALED_GROUPS * GROUP_BYTES;
    }
}

INLINE void wide_tile(const uint8_t *packed, size_t groups, const uint8_t *group, totals sums, const int tokens) {
    struct tile tile = tile_of(IQ4_NL, packed, groups);
    for (; groups; groups--, group += (size_t)tokens * GROUP_BYTES) {
        wide_group(tile.lines, tile.multiples, group, sums, tokens);
        tile.lines += line_stride(IQ4_NL);
        tile.multiples += multiple_stride(IQ4_NL);
    }
}

/* out [tokens, 32] += groups of a panel, or of PANELS panels in a buffer. `stride` is from panel to panel there. */
INLINE void sweep(const int kind, const uint8_t *packed, size_t stride, size_t groups, const uint8_t *group, float *out,
                  const int tokens) {
    const int vectors = kind >= BUFFERED_BOOK ? PANELS * VECTORS : VECTORS;
    const size_t step = (size_t)tokens * GROUP_BYTES;
    totals sums;
    EACH_TOKEN
        EACH_VECTOR
            sums[v][t] = load(out + t * TASK_ROWS + v * LANES);
    if (kind == Q8)
        for (; groups; groups--, packed += Q8_TILE, group += step)
            q8_group(packed, group, sums, tokens);
    else if (kind == BUFFERED_Q8)
        for (; groups; groups--, packed += UNPACKED, group += step)
            buffered_q8_group(packed, stride, group, sums, tokens);
    else if (kind == BUFFERED_BOOK)
        book_tile(kind, packed, stride, groups, group, sums, tokens);
    else
        for (; groups; groups -= minimum(groups, CHUNK)) {
            if (kind == IQ4_NL)
                wide_tile(packed, minimum(groups, CHUNK), group, sums, tokens);
            else
                book_tile(kind, packed, stride, minimum(groups, CHUNK), group, sums, tokens);
            packed += groups_bytes(kind, CHUNK);
            group += CHUNK * step;
        }
    EACH_TOKEN
        EACH_VECTOR
            store(out + t * TASK_ROWS + v * LANES, sums[v][t]);
}

INLINE void unpack_scales(const uint8_t *scale_line, uint8_t *line) {
    for (int row = 0; row < PANEL_ROWS; row += LANES)
        store((float *)line + row, scales(scale_line + 2 * row));
}

INLINE void unpack_group(const int format, const uint8_t *lines, const uint8_t *bytes, uint8_t *buffer) {
    const int vectors = VECTORS;
    floats numbers[2][VECTORS];
    both_multiples(format, bytes, numbers[0], numbers[1]);
    EACH_VECTOR {
        _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) {
            codes low, high;
            book_codes(format, lines, v, j, &low, &high);
            store_codes(buffer + j * LINE + v * LANES * 4, low);
            store_codes(buffer + (4 + j) * LINE + v * LANES * 4, high);
        }
        for (int half = 0; half < 2; half++)
            store((float *)(buffer + (8 + half) * LINE) + v * LANES, numbers[half][v]);
    }
}

INLINE void unpack_book(const int format, const uint8_t *packed, size_t groups, uint8_t *buffer) {
    struct tile tile = tile_of(format, packed, groups);
    for (size_t i = 0; i < ceil_div(groups, SCALED_GROUPS); i++) {
        uint8_t *line = buffer + CHUNK * UNPACKED + i * LINE;
        if (has_multiples(format))
            unpack_scales(tile.scales + i * 2 * PANEL_ROWS, line);
        else
            memcpy(line, ones, LINE);
    }
    for (size_t i = 0; i < groups; i++)
        unpack_group(format, tile.lines + i * line_stride(format), tile.multiples + i * multiple_stride(format),
                     buffer + i * UNPACKED);
}

/* As q8 is in a buffer. */
INLINE void unpack_wide(const uint8_t *packed, size_t groups, uint8_t *buffer) {
    const int vectors = VECTORS;
    struct tile tile = tile_of(IQ4_NL, packed, groups);
    for (size_t i = 0; i < groups; i++, buffer += UNPACKED)
        EACH_VECTOR {
            _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) {
                codes low, high;
                nibble_codes(iq4_nl_table, 1, tile.lines + i * line_stride(IQ4_NL) + j * LINE + v * LANES * 4, &low,
                             &high);
                store_codes(buffer + j * LINE + v * LANES * 4, low);
                store_codes(buffer + (4 + j) * LINE + v * LANES * 4, high);
            }
            floats scale = own_scale(IQ4_NL, tile.multiples + i * multiple_stride(IQ4_NL), v);
            store((float *)(buffer + 8 * LINE) + v * LANES, scale);
        }
}

INLINE void unpack_q8(const uint8_t *tile, uint8_t *buffer) {
    for (int byte = 0; byte < 8 * LINE; byte += 4 * LANES)
        store_codes(buffer + byte, q8_codes(tile + 32 + byte));
    unpack_scales(tile, buffer + 8 * LINE);
}

/* Groups of a panel in a buffer: lines as codes, then what they are multiplied by as floats. */
static void unpack(enum format format, const uint8_t *packed, size_t groups, uint8_t *buffer) {
    if (format == Q4)
        unpack_book(Q4, packed, groups, buffer);
    else if (format == Q3)
        unpack_book(Q3, packed, groups, buffer);
    else if (format == MXFP4)
        unpack_book(MXFP4, packed, groups, buffer);
    else if (format == Q4_0)
        unpack_book(Q4_0, packed, groups, buffer);
    else if (format == IQ4_NL)
        unpack_wide(packed, groups, buffer);
    else
        for (; groups; groups--, packed += Q8_TILE, buffer += UNPACKED)
            unpack_q8(packed, buffer);
}

typedef void kernel(const uint8_t *packed, size_t stride, size_t groups, const uint8_t *group, float *sums);

#define KERNEL(kind, tokens)                                                                                           \
    static void sweep_##kind##_##tokens(const uint8_t *packed, size_t stride, size_t groups, const uint8_t *group,     \
                                        float *sums) {                                                                 \
        sweep(kind, packed, stride, groups, group, sums, tokens);                                                      \
    }
#define KERNELS(tokens)                                                                                                \
    KERNEL(Q4, tokens)                                                                                                 \
    KERNEL(Q3, tokens)                                                                                                 \
    KERNEL(MXFP4, tokens)                                                                                              \
    KERNEL(Q4_0, tokens)                                                                                               \
    KERNEL(IQ4_NL, tokens)                                                                                             \
    KERNEL(Q8, tokens)                                                                                                 \
    KERNEL(BUFFERED_BOOK, tokens)                                                                                      \
    KERNEL(BUFFERED_Q8, tokens)
#define NAME(kind, tokens) sweep_##kind##_##tokens
KERNELS(1)
#if TOKENS == 1
#define NAMES(kind) {NAME(kind, 1)}
#else
KERNELS(2)
KERNELS(3)
KERNELS(4)
#define FOUR(kind) NAME(kind, 1), NAME(kind, 2), NAME(kind, 3), NAME(kind, 4)
#if TOKENS == 4
#define NAMES(kind) {FOUR(kind)}
#else
KERNELS(5)
KERNELS(6)
#define NAMES(kind) {FOUR(kind), NAME(kind, 5), NAME(kind, 6)}
#endif
#endif
static kernel *const kernels[KINDS][TOKENS] = {NAMES(Q4),     NAMES(Q3), NAMES(MXFP4),         NAMES(Q4_0),
                                               NAMES(IQ4_NL), NAMES(Q8), NAMES(BUFFERED_BOOK), NAMES(BUFFERED_Q8)};

/* Whether 4 products of its codes are too large for 16 bits. */
static int is_wide(enum format format) { return format == Q8 || format == IQ4_NL; }

/* sums [tokens, 32] of `count` rows from `row` on, which begins a panel, times a block of tokens. `buffer` has 2
   panels' chunk. */
static void tiled_product(struct shape shape, const uint8_t *packed, size_t row, size_t count, const uint8_t *quantised,
                          size_t tokens, float *sums, uint8_t *buffer) {
    size_t groups = groups_across(shape), stride = panel_bytes(shape), panels = ceil_div(count, PANEL_ROWS);
    packed += row / PANEL_ROWS * stride;
    memset(sums, 0, tokens * TASK_ROWS * sizeof *sums);
    for (size_t panel = 0; panel < panels && tokens <= TOKENS; panel++)
        kernels[shape.format][tokens - 1](packed + panel * stride, 0, groups, quantised, sums + panel * PANEL_ROWS);
    for (size_t panel = 0; panel < panels && tokens > TOKENS; panel += PANELS) {
        /* the last panel may be taken twice at once: the second result is in rows that nobody reads */
        size_t between = panel + PANELS <= panels ? PANEL_CHUNK : 0;
        for (size_t first = 0; first < groups; first += CHUNK) {
            size_t some = minimum(CHUNK, groups - first);
            const uint8_t *from = packed + groups_bytes((int)shape.format, first);
            for (size_t s = 0; s < PANELS && panel + s < panels; s++)
                unpack(shape.format, from + (panel + s) * stride, some, buffer + s * PANEL_CHUNK);
            for (size_t token = 0; token < tokens; token += TOKENS) {
                size_t width = minimum(TOKENS, tokens - token);
                kernels[is_wide(shape.format) ? BUFFERED_Q8 : BUFFERED_BOOK][width - 1](
                    buffer, between, some, quantised + (token * groups + first * width) * GROUP_BYTES,
                    sums + token * TASK_ROWS + panel * PANEL_ROWS);
            }
        }
    }
}

#endif
