/* Quantising: the arithmetic of formats/q4.py and q8.py, rounding by rounding, so that the bytes are theirs.

   An instruction set may bring its own q4_error and q4_nibbles (and say so by VECTOR_SEARCH). */
#ifndef MOECLI_PACK_H
#define MOECLI_PACK_H

#include "codebook.inc.h"

#define LARGEST_SCALE 65504.0f /* of fp16 */
#define WIDEST 128             /* columns of a tile */
#define RUN 8                  /* tiles of a task */

#if !defined VECTOR_SEARCH
INLINE int nearest_code(const struct search *search, int cell) { return (cell + search->steps[cell >> 4]) >> 9; }

/* 16 times the squared distances from the cells' middles to their codes. */
static int32_t q4_error(const struct search *search, const float *weights, float inverse) {
    int32_t cells[64], sum = 0;
    for (int i = 0; i < 64; i++)
        cells[i] = (int32_t)(weights[i] * inverse + CELLS / 2);
    for (int i = 0; i < 64; i++) {
        int32_t distance = 2 * cells[i] - search->edges[nearest_code(search, cells[i])];
        sum += distance * distance;
    }
    return sum;
}

/* The index of each weight's code. */
static void q4_nibbles(const struct search *search, const float *weights, float inverse, uint8_t *nibbles) {
    int32_t cells[64];
    for (int i = 0; i < 64; i++) {
        float cell = weights[i] * inverse + CELLS / 2;
        cells[i] = (int32_t)(cell < 0 ? 0 : cell > CELLS - 1 ? CELLS - 1 : cell);
    }
    for (int i = 0; i < 64; i++)
        nibbles[i] = (uint8_t)nearest_code(search, cells[i]);
}
#endif

/* Cells per weight. */
static float cells_per(float scale) { return scale == 0 ? 0 : 2 / scale; }

static float within(float number, float limit) { return number < -limit ? -limit : number > limit ? limit : number; }

/* The scale tried that leaves the least error, the first of equals. */
static float q4_best(const struct search *search, const float *weights, float absmax) {
    static const float tried[] = {0.9f, 0.94f, 0.96f, 0.98f, 1.02f, 1.06f, -1.02f, -1.08f, -1.13f, -1.18f};
    float base = (fabsf(absmax) < EPS ? 0 : absmax) / -127, best = INFINITY, chosen = 0;
    for (size_t i = 0; i < sizeof tried / sizeof *tried; i++) {
        float scale = within(base * tried[i], LARGEST_SCALE / 128);
        float error = (float)q4_error(search, weights, cells_per(scale)) * (scale * scale);
        if (error < best) {
            best = error;
            chosen = scale;
        }
    }
    return chosen;
}

/* A group of 64 in a row of a tile: its scale, and a byte of two nibbles at every place of 8 lines. */
static void q4_group(const struct search *search, const float *weights, float absmax, uint8_t *scale_at,
                     uint8_t *lines) {
    static const int8_t codes[16] = CODEBOOK;
    uint8_t nibbles[64];
    float products[64];
    int32_t squares = 0;
    q4_nibbles(search, weights, cells_per(q4_best(search, weights, absmax)), nibbles);
    for (int i = 0; i < 64; i++) {
        products[i] = (float)codes[nibbles[i]] * weights[i];
        squares += codes[nibbles[i]] * codes[nibbles[i]];
    }
    for (int half = 32; half; half /= 2) /* the order of q4._sum */
        for (int i = 0; i < half; i++)
            products[i] += products[i + half];
    uint16_t scale = to_fp16(within(products[0] / (float)squares * 128, LARGEST_SCALE));
    memcpy(scale_at, &scale, 2);
    q4_nibbles(search, weights, cells_per(from_fp16(scale) / 128), nibbles);
    for (int i = 0; i < 32; i++)
        lines[i / 4 * 64 + i % 4] = (uint8_t)(nibbles[i] | nibbles[32 + i] << 4);
}

/* Weights per scale, rounded to whole codes. */
INLINE float q8_code(float weight, float inverse) { return within(weight * inverse + ROUND_MAGIC - ROUND_MAGIC, 127); }

static float q8_inverse(float scale) { return scale < EPS ? 0 : 1 / scale; }

/* A group of 32 in a row of a tile: its scale, and 4 bytes in each of 8 lines. */
static void q8_group(const float *weights, float absmax, uint8_t *scale_at, uint8_t *lines) {
    float base = fabsf(absmax) / 127, best = INFINITY, chosen = base;
    for (int i = 0; i < 9; i++) {
        int step = (i + 1) / 2 * (i % 2 ? -1 : 1); /* 0, -1, 1, -2, 2, ... */
        float scale = within(base * (float)(1 + step / 400.0), LARGEST_SCALE / 128), inverse = q8_inverse(scale);
        int32_t sum = 0;
        for (int k = 0; k < GROUP; k++) {
            float value = weights[k] * inverse;
            int32_t distance = (int32_t)((value - q8_code(weights[k], inverse)) * 256 + ROUND_MAGIC - ROUND_MAGIC);
            sum += distance * distance;
        }
        float error = (float)sum * (scale * scale);
        if (error < best) {
            best = error;
            chosen = scale;
        }
    }
    uint16_t scale = to_fp16(chosen * 128);
    memcpy(scale_at, &scale, 2);
    float inverse = q8_inverse(from_fp16(scale) / 128);
    for (int k = 0; k < GROUP; k++)
        lines[k / 4 * 64 + k % 4] = (uint8_t)(int8_t)q8_code(weights[k], inverse);
}

/* The weight farthest from 0, the negative one of two. Integers order finite magnitudes, and others above them. */
static float absmax_of(const float *weights, int count) {
    uint32_t largest = 0, negative = 0;
    for (int i = 0; i < count; i++) {
        uint32_t magnitude = bits_of(weights[i]) & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
    }
    for (int i = 0; i < count; i++)
        negative |= bits_of(weights[i]) == (largest | 0x80000000);
    return from_bits(largest | negative << 31);
}

struct packing {
    const struct pack *call;
    struct search search;
    struct tasks tasks;
    size_t tile_columns, tiles, workers;
    int not_finite, too_large;
};

INLINE float weight_at(const void *weights, int32_t type, int64_t at) {
    if (type == FP32)
        return ((const float *)weights)[at];
    uint16_t bits = ((const uint16_t *)weights)[at];
    return type == BF16 ? from_bf16(bits) : from_fp16(bits);
}

INLINE void read_line(const struct pack *call, const int32_t type, int64_t from, int64_t stride, size_t count,
                      float *line) {
    if (stride == 1)
        for (size_t i = 0; i < count; i++)
            line[i] = weight_at(call->weights, type, from + (int64_t)i);
    else
        for (size_t i = 0; i < count; i++)
            line[i] = weight_at(call->weights, type, from + (int64_t)i * stride);
}

/* The weights of a tile as floats, with zeros where the matrix ends. */
static void read_tile(const struct pack *call, size_t row, size_t column, size_t width,
                      float tile[PANEL_ROWS][WIDEST]) {
    size_t rows = minimum(PANEL_ROWS, (size_t)call->rows - row);
    size_t columns = minimum(width, (size_t)call->columns - column);
    if (rows < PANEL_ROWS || columns < width)
        memset(tile, 0, PANEL_ROWS * sizeof *tile);
    for (size_t r = 0; r < rows; r++) {
        int64_t from = (int64_t)(row + r) * call->row_stride + (int64_t)column * call->column_stride;
        if (call->type == FP32)
            read_line(call, FP32, from, call->column_stride, columns, tile[r]);
        else if (call->type == BF16)
            read_line(call, BF16, from, call->column_stride, columns, tile[r]);
        else
            read_line(call, FP16, from, call->column_stride, columns, tile[r]);
    }
}

static void pack_tile(struct packing *packing, size_t panel, size_t tile) {
    const struct pack *call = packing->call;
    float weights[PANEL_ROWS][WIDEST];
    size_t size = call->format == Q4 ? Q4_TILE : Q8_TILE;
    uint8_t *bytes = (uint8_t *)call->packed + (panel * packing->tiles + tile) * size;
    int group = call->format == Q4 ? 64 : 32;
    read_tile(call, panel * PANEL_ROWS, tile * packing->tile_columns, packing->tile_columns, weights);
    for (int row = 0; row < PANEL_ROWS; row++)
        for (int first = 0; first < (int)packing->tile_columns; first += group) {
            float absmax = absmax_of(weights[row] + first, group);
            if (!(fabsf(absmax) <= LARGEST_SCALE)) {
                int *problem = fabsf(absmax) < INFINITY ? &packing->too_large : &packing->not_finite;
                __atomic_store_n(problem, 1, __ATOMIC_RELAXED);
            } else if (call->format == Q4) {
                q4_group(&packing->search, weights[row] + first, absmax, bytes + first / 2 + 2 * row,
                         bytes + 64 + 8 * first + 4 * row);
            } else {
                q8_group(weights[row], absmax, bytes + 2 * row, bytes + 32 + 4 * row);
            }
        }
}

static void pack_tasks(void *argument) {
    struct packing *packing = argument;
    size_t worker = __atomic_fetch_add(&packing->workers, 1, __ATOMIC_RELAXED);
    size_t runs = ceil_div(packing->tiles, RUN), task;
    while (next_task(&packing->tasks, &packing->call->pool, worker, &task)) {
        size_t panel = task / runs, first = task % runs * RUN;
        for (size_t tile = first; tile < minimum(first + RUN, packing->tiles); tile++)
            pack_tile(packing, panel, tile);
    }
}

static enum status pack(const struct pack *call) {
    struct packing packing = {.call = call, .search = new_search()};
    packing.tile_columns = call->format == Q4 ? 128 : 32;
    packing.tiles = ceil_div((size_t)call->columns, packing.tile_columns);
    packing.tasks.count = ceil_div((size_t)call->rows, PANEL_ROWS) * ceil_div(packing.tiles, RUN);
    run(&call->pool, pack_tasks, &packing);
    return packing.not_finite ? NOT_FINITE : packing.too_large ? TOO_LARGE : DONE;
}

#endif
