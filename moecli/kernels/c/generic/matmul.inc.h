/* Packed rows times quantised activations.

   Before this an instruction set defines a vector of LANES rows (a divisor of 16):

       codes    4 columns of each row, a byte each; `ints` and `floats`, one number a row
       start    the accumulator before the first product, given the group's start: that, or 0 if codes are signed
       dot      adds 4 products a row to it, exactly
       q4_codes, q8_codes    the codes of a line; load_codes, store_codes    those codes in a buffer
       scales, load, store    floats from fp16 and from floats, and to floats
       add      sum + (dot * activation scale) * scale, the last two in one rounding

   and PANELS and TOKENS (1, 4 or 6), how many are taken at once: panels only from a buffer that tokens share, since a
   thread reads memory fastest as one stream, without prefetching by hand. Each sum adds the groups of 32 from left to
   right whatever the number of tokens and rows, and so is the same on every instruction set. */
#ifndef MOECLI_MATMUL_H
#define MOECLI_MATMUL_H

#include "numbers.inc.h"

#define TASK_ROWS 32 /* rows of a task: two panels, and one group of the next matrix */
#define LINE 64      /* bytes of 4 columns of a panel */
#define UNPACKED 576 /* bytes of a group of a panel in a buffer: 8 lines and 16 scales */
#define CHUNK 16     /* groups in a buffer at once */

enum { BUFFERED = Q8 + 1 }; /* a kind of kernel beside Q4 and Q8 */

struct shape {
    enum format format;
    size_t rows, columns;
};

static size_t tile_bytes(enum format format) { return format == Q4 ? Q4_TILE : Q8_TILE; }

static size_t tile_groups(enum format format) { return format == Q4 ? 4 : 1; }

static size_t tiles_across(struct shape shape) { return ceil_div(shape.columns, GROUP * tile_groups(shape.format)); }

static size_t groups_across(struct shape shape) { return tiles_across(shape) * tile_groups(shape.format); }

static size_t panel_bytes(struct shape shape) { return tiles_across(shape) * tile_bytes(shape.format); }

#define VECTORS (PANEL_ROWS / LANES) /* of a panel */
#define EACH_VECTOR _Pragma("GCC unroll 4") for (int v = 0; v < vectors; v++)
#define EACH_TOKEN _Pragma("GCC unroll 6") for (int t = 0; t < tokens; t++)

typedef ints counts[PANELS * VECTORS][TOKENS];
typedef floats totals[PANELS * VECTORS][TOKENS];

INLINE void begin(counts sums, const uint8_t *group, const int vectors, const int tokens) {
    EACH_TOKEN {
        int32_t value;
        memcpy(&value, group + tokens * (GROUP + 4) + t * 4, 4);
        EACH_VECTOR
            sums[v][t] = start(value);
    }
}

INLINE void finish(totals sums, counts group_sums, const uint8_t *group, const floats *scale, const int vectors,
                   const int tokens) {
    EACH_TOKEN {
        float value;
        memcpy(&value, group + tokens * GROUP + t * 4, 4);
        EACH_VECTOR
            sums[v][t] = add(sums[v][t], group_sums[v][t], value, scale[v]);
    }
}

/* 64 columns of a panel: the low nibbles are the first group, the high nibbles the second. */
INLINE void q4_pair(const uint8_t *scale_line, const uint8_t *lines, const uint8_t *group, totals sums,
                    const int tokens) {
    const int vectors = VECTORS;
    const uint8_t *second = group + tokens * GROUP_BYTES;
    counts low, high;
    floats scale[VECTORS];
    begin(low, group, vectors, tokens);
    begin(high, second, vectors, tokens);
    for (int j = 0; j < 8; j++)
        EACH_VECTOR {
            codes first, last;
            q4_codes(lines + j * LINE + v * LANES * 4, &first, &last);
            EACH_TOKEN {
                low[v][t] = dot(low[v][t], first, (const int8_t *)group + t * GROUP + 4 * j);
                high[v][t] = dot(high[v][t], last, (const int8_t *)second + t * GROUP + 4 * j);
            }
        }
    EACH_VECTOR
        scale[v] = scales(scale_line + v * LANES * 2);
    finish(sums, low, group, scale, vectors, tokens);
    finish(sums, high, second, scale, vectors, tokens);
}

/* 32 columns of a panel. */
INLINE void q8_group_sums(const uint8_t *tile, const uint8_t *group, totals sums, const int tokens) {
    const int vectors = VECTORS;
    counts group_sums;
    floats scale[VECTORS];
    begin(group_sums, group, vectors, tokens);
    for (int j = 0; j < 8; j++)
        EACH_VECTOR {
            codes line = q8_codes(tile + 32 + j * LINE + v * LANES * 4);
            EACH_TOKEN
                group_sums[v][t] = dot(group_sums[v][t], line, (const int8_t *)group + t * GROUP + 4 * j);
        }
    EACH_VECTOR
        scale[v] = scales(tile + v * LANES * 2);
    finish(sums, group_sums, group, scale, vectors, tokens);
}

/* 32 columns of PANELS panels in a buffer. */
INLINE void buffered_group(const uint8_t *buffer, size_t stride, const uint8_t *group, totals sums, const int tokens) {
    const int vectors = PANELS * VECTORS;
    counts group_sums;
    floats scale[PANELS * VECTORS];
    begin(group_sums, group, vectors, tokens);
    for (int j = 0; j < 8; j++) {
        codes line[PANELS * VECTORS];
        EACH_VECTOR
            line[v] = load_codes(buffer + v / VECTORS * stride + j * LINE + v % VECTORS * LANES * 4);
        EACH_TOKEN
            EACH_VECTOR
                group_sums[v][t] = dot(group_sums[v][t], line[v], (const int8_t *)group + t * GROUP + 4 * j);
    }
    EACH_VECTOR
        scale[v] = load((const float *)(buffer + v / VECTORS * stride + 8 * LINE) + v % VECTORS * LANES);
    finish(sums, group_sums, group, scale, vectors, tokens);
}

/* out [tokens, 32] += groups of a panel, or of PANELS panels in a buffer. `stride` is from panel to panel there. */
INLINE void sweep(const int kind, const uint8_t *packed, size_t stride, size_t groups, const uint8_t *group, float *out,
                  const int tokens) {
    const int vectors = kind == BUFFERED ? PANELS * VECTORS : VECTORS;
    const size_t step = (size_t)tokens * GROUP_BYTES;
    totals sums;
    EACH_TOKEN
        EACH_VECTOR
            sums[v][t] = load(out + t * TASK_ROWS + v * LANES);
    if (kind == Q4) {
        for (; groups; groups -= 4, packed += Q4_TILE, group += 4 * step) {
            q4_pair(packed, packed + 64, group, sums, tokens);
            q4_pair(packed + 32, packed + 576, group + 2 * step, sums, tokens);
        }
    } else if (kind == Q8) {
        for (; groups; groups--, packed += Q8_TILE, group += step)
            q8_group_sums(packed, group, sums, tokens);
    } else {
        for (; groups; groups--, packed += UNPACKED, group += step)
            buffered_group(packed, stride, group, sums, tokens);
    }
    EACH_TOKEN
        EACH_VECTOR
            store(out + t * TASK_ROWS + v * LANES, sums[v][t]);
}

INLINE void unpack_scales(const uint8_t *scale_line, uint8_t *buffer) {
    for (int row = 0; row < PANEL_ROWS; row += LANES)
        store((float *)(buffer + 8 * LINE) + row, scales(scale_line + 2 * row));
}

INLINE void unpack_q4(const uint8_t *scale_line, const uint8_t *lines, uint8_t *buffer) {
    for (int byte = 0; byte < 8 * LINE; byte += 4 * LANES) {
        codes first, last;
        q4_codes(lines + byte, &first, &last);
        store_codes(buffer + byte, first);
        store_codes(buffer + UNPACKED + byte, last);
    }
    unpack_scales(scale_line, buffer);
    unpack_scales(scale_line, buffer + UNPACKED);
}

INLINE void unpack_q8(const uint8_t *tile, uint8_t *buffer) {
    for (int byte = 0; byte < 8 * LINE; byte += 4 * LANES)
        store_codes(buffer + byte, q8_codes(tile + 32 + byte));
    unpack_scales(tile, buffer);
}

/* Tiles of a panel in a buffer: each group's lines as codes, then its scales as floats. */
static void unpack(enum format format, const uint8_t *packed, size_t groups, uint8_t *buffer) {
    for (; groups; groups -= format == Q4 ? 4 : 1, packed += tile_bytes(format)) {
        if (format == Q8) {
            unpack_q8(packed, buffer);
            buffer += UNPACKED;
        } else {
            unpack_q4(packed, packed + 64, buffer);
            unpack_q4(packed + 32, packed + 576, buffer + 2 * UNPACKED);
            buffer += 4 * UNPACKED;
        }
    }
}

typedef void kernel(const uint8_t *packed, size_t stride, size_t groups, const uint8_t *group, float *sums);

#define KERNEL(kind, tokens)                                                                                           \
    static void sweep_##kind##_##tokens(const uint8_t *packed, size_t stride, size_t groups, const uint8_t *group,     \
                                        float *sums) {                                                                 \
        sweep(kind, packed, stride, groups, group, sums, tokens);                                                      \
    }
#define KERNELS(tokens) KERNEL(Q4, tokens) KERNEL(Q8, tokens) KERNEL(BUFFERED, tokens)
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
static kernel *const kernels[3][TOKENS] = {NAMES(Q4), NAMES(Q8), NAMES(BUFFERED)};

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
        size_t between = panel + PANELS <= panels ? CHUNK * UNPACKED : 0;
        for (size_t first = 0; first < groups; first += CHUNK) {
            size_t some = minimum(CHUNK, groups - first);
            const uint8_t *from = packed + first / tile_groups(shape.format) * tile_bytes(shape.format);
            for (size_t s = 0; s < PANELS && panel + s < panels; s++)
                unpack(shape.format, from + (panel + s) * stride, some, buffer + s * CHUNK * UNPACKED);
            for (size_t token = 0; token < tokens; token += TOKENS) {
                size_t width = minimum(TOKENS, tokens - token);
                kernels[BUFFERED][width - 1](buffer, between, some,
                                             quantised + (token * groups + first * width) * GROUP_BYTES,
                                             sums + token * TASK_ROWS + panel * PANEL_ROWS);
            }
        }
    }
}

#endif
