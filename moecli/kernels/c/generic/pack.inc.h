/* Quantising: the arithmetic of formats/codebook.py and q8.py, rounding by rounding, so that the bytes are theirs. */
#ifndef MOECLI_PACK_H
#define MOECLI_PACK_H

#include "codebook.inc.h"

#define LARGEST_SCALE 65504.0f /* of fp16 */
#define WIDEST SCALED          /* columns that are quantised at once */
#define HALVES (SCALED / HALF)
#define Q8_CODES 127 /* of either sign */
#define RUN 4        /* times as many are a task */

static float within(float number, float limit) { return number < -limit ? -limit : number > limit ? limit : number; }

static float larger_of(float a, float b) { return a > b ? a : b; }

/* The cells of 16 weights, of which there are `inverse` to 1. */
static void cells_of(const float *weights, float inverse, int32_t *cells) {
    _Pragma("GCC unroll 1") for (int i = 0; i < HALF; i++) { /* else it is unrolled, and no longer vectorised */
        float cell = weights[i] * inverse + ROUND_MAGIC - ROUND_MAGIC + CELLS / 2;
        cell = cell > CELLS - 1 ? CELLS - 1 : cell;
        cells[i] = (int32_t)(cell < 0 ? 0 : cell);
    }
}

static float cells_per(float scale, int nibble) { return scale == 0 ? 0 : CELLS_PER_CODE / (scale * multiple[nibble]); }

/* The scale without which neither the highest nor the lowest of 16 weights is cut off, under a multiple of 1: above 0,
   below 0. */
struct reach {
    float up, down;
};

static struct reach reach_of(const struct search *search, const float *weights) {
    float high = 0, low = 0, above = search->codes[search->count - 1], below = -search->codes[0];
    for (int i = 0; i < HALF; i++) {
        high = larger_of(weights[i], high);
        low = larger_of(-weights[i], low);
    }
    return (struct reach){larger_of(high / above, low / below), larger_of(high / below, low / above)};
}

/* Of the multiples that nearly reach all of 16 weights, the two least of either sign, the one that leaves the least
   error, the first of equals; adds that error, in squares of quarters of `scale`. */
static int best_multiple(const struct search *search, const float *weights, struct reach reach, float scale,
                         float *error) {
    float least = INFINITY;
    int best = 0;
    for (int sign = 0; sign < 16; sign += 8) {
        float wanted = (sign ? reach.down : reach.up) / scale * 0.85f;
        int first = 0;
        while (first < 7 && multiple[first] <= wanted)
            first++;
        for (int nibble = first; nibble <= first + 1 && nibble < 8; nibble++) {
            int32_t cells[HALF], sum = 0;
            cells_of(weights, cells_per(scale, sign + nibble), cells);
            for (int i = 0; i < HALF; i++)
                sum += search->squares[cells[i]];
            float found = (float)(sum * multiple[nibble] * multiple[nibble]);
            if (found < least) {
                least = found;
                best = sign + nibble;
            }
        }
    }
    *error += least;
    return best;
}

/* The scale and the multiples of 256 weights: the best of four scales, then fitted to the codes that it gives. */
static float book_scale(const struct search *search, const float *weights, int *choices) {
    static const float tried[] = {0.95f, 1, 1.05f, 1.1f};
    struct reach reach[HALVES];
    float base = 0, best = INFINITY, chosen = 0, products[SCALED];
    int32_t squares = 0;
    for (int half = 0; half < HALVES; half++) {
        reach[half] = reach_of(search, weights + half * HALF);
        base = larger_of(reach[half].up < reach[half].down ? reach[half].up : reach[half].down, base);
    }
    base /= multiple[7];
    if (base < EPS) {
        memset(choices, 0, HALVES * sizeof *choices);
        return 0;
    }
    for (size_t i = 0; i < sizeof tried / sizeof *tried; i++) {
        int found[HALVES];
        float scale = base * tried[i], error = 0;
        for (int half = 0; half < HALVES; half++)
            found[half] = best_multiple(search, weights + half * HALF, reach[half], scale, &error);
        error *= scale * scale;
        if (error < best) {
            best = error;
            chosen = scale;
            memcpy(choices, found, sizeof found);
        }
    }
    for (int half = 0; half < HALVES; half++) {
        int32_t cells[HALF];
        cells_of(weights + half * HALF, cells_per(chosen, choices[half]), cells);
        for (int i = 0; i < HALF; i++) {
            int32_t number = search->codes[search->nearest[cells[i]]] * multiple[choices[half]];
            products[half * HALF + i] = (float)number * weights[half * HALF + i];
            squares += number * number;
        }
    }
    for (int half = SCALED / 2; half; half /= 2) /* the order of codebook._sum */
        for (int i = 0; i < half; i++)
            products[i] += products[i + half];
    return products[0] / (float)squares;
}

/* Indices of line j of either half, at their byte of the lines of a group, after those of the lines before. */
static void put_indices(enum format format, uint8_t *at, int j, int low, int high) {
    if (format == Q4) {
        at[j * LINE] = (uint8_t)(low | high << 4);
        return;
    }
    uint8_t *two = at + j / 2 * LINE, *one = at + 2 * LINE;
    int pairs = (low & 3) | (high & 3) << 2, bits = low >> 2 | high >> 2 << 1;
    *two = (uint8_t)(j % 2 ? *two | pairs << 4 : pairs);
    *one = (uint8_t)(j ? *one | bits << 2 * j : bits);
}

/* Columns of a row that share a scale: that, and for each group its multiples and the indices at its places of the
   lines. `tile` is where these columns begin in it. */
static void book_row(const struct search *search, enum format format, const float *weights, size_t groups,
                     struct tile tile, int row) {
    int choices[HALVES];
    uint16_t bits = to_fp16(within(book_scale(search, weights, choices) * 128, LARGEST_SCALE));
    memcpy((uint8_t *)tile.scales + 2 * row, &bits, 2);
    float scale = from_fp16(bits) / 128;
    for (size_t g = 0; g < groups; g++, weights += GROUP) {
        int32_t cells[2][HALF];
        uint8_t *lines = (uint8_t *)tile.lines + g * index_bytes((int)format) + 4 * row;
        ((uint8_t *)tile.multiples)[g * PANEL_ROWS + row] = (uint8_t)(choices[2 * g] | choices[2 * g + 1] << 4);
        for (int half = 0; half < 2; half++)
            cells_of(weights + half * HALF, cells_per(scale, choices[2 * g + half]), cells[half]);
        for (int i = 0; i < HALF; i++)
            put_indices(format, lines + i % 4, i / 4, search->nearest[cells[0][i]], search->nearest[cells[1][i]]);
    }
}

/* Weights per scale, rounded to whole codes. */
INLINE float q8_code(float weight, float inverse) { return within(weight * inverse + ROUND_MAGIC - ROUND_MAGIC, 127); }

static float q8_inverse(float scale) { return scale < EPS ? 0 : 1 / scale; }

/* Whether weights are codes times a scale to the last bit. */
static int keeps(const float *weights, float scale) {
    float inverse = q8_inverse(scale);
    for (int k = 0; k < GROUP; k++)
        if (q8_code(weights[k], inverse) * scale != weights[k])
            return 0;
    return 1;
}

/* The fp16 number, 127 times at least the largest weight, of which all are whole multiples; `otherwise` if there is
   none. */
static float kept_scale(const float *weights, float absmax, float otherwise) {
    float steps[Q8_CODES];
    int fits[Q8_CODES], any = 0;
    for (int i = 0; i < Q8_CODES; i++) {
        float step = absmax / (float)(Q8_CODES - i);
        steps[i] = step;
        fits[i] = ((bits_of(step) & 0x1fff) == 0) & (step * (float)(Q8_CODES - i) == absmax) &
                  (step >= 0x1p-14f / 128) & (step <= LARGEST_SCALE / 128);
        any |= fits[i];
    }
    for (int i = 0; any && i < Q8_CODES; i++)
        if (fits[i] && keeps(weights, steps[i]))
            return steps[i];
    return otherwise;
}

/* A group of 32 in a row of a tile: its scale, and 4 bytes in each of 8 lines. */
static void q8_row(const float *weights, float absmax, uint8_t *scale_at, uint8_t *lines) {
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
    if (!keeps(weights, from_fp16(scale) / 128))
        scale = to_fp16(kept_scale(weights, fabsf(absmax), chosen) * 128);
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
    size_t columns, parts, workers;
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

/* A fault of the weights is noted. */
static int can_be_packed(struct packing *packing, float absmax) {
    if (fabsf(absmax) <= LARGEST_SCALE)
        return 1;
    __atomic_store_n(fabsf(absmax) < INFINITY ? &packing->too_large : &packing->not_finite, 1, __ATOMIC_RELAXED);
    return 0;
}

/* Columns of a panel from a group on, those that share a scale. */
static struct tile tile_at(struct shape shape, const uint8_t *panel, size_t group) {
    size_t first = group / CHUNK * CHUNK, within = group - first;
    struct tile tile = tile_of((int)shape.format, panel + groups_bytes((int)shape.format, first),
                               minimum(CHUNK, groups_across(shape) - first));
    tile.scales += within / SCALED_GROUPS * 2 * PANEL_ROWS;
    tile.multiples += within * PANEL_ROWS;
    tile.lines += within * index_bytes((int)shape.format);
    return tile;
}

static void pack_columns(struct packing *packing, size_t panel, size_t column) {
    const struct pack *call = packing->call;
    float weights[PANEL_ROWS][WIDEST];
    struct shape shape = {(enum format)call->format, (size_t)call->rows, (size_t)call->columns};
    uint8_t *bytes = (uint8_t *)call->packed + panel * panel_bytes(shape);
    size_t group = column / GROUP, groups = minimum(packing->columns / GROUP, groups_across(shape) - group);
    read_tile(call, panel * PANEL_ROWS, column, packing->columns, weights);
    for (int row = 0; row < PANEL_ROWS; row++) {
        float absmax = absmax_of(weights[row], (int)packing->columns);
        if (!can_be_packed(packing, absmax))
            continue;
        if (shape.format != Q8)
            book_row(&packing->search, shape.format, weights[row], groups, tile_at(shape, bytes, group), row);
        else
            q8_row(weights[row], absmax, bytes + group * Q8_TILE + 2 * row, bytes + group * Q8_TILE + 32 + 4 * row);
    }
}

static void pack_tasks(void *argument) {
    struct packing *packing = argument;
    size_t worker = __atomic_fetch_add(&packing->workers, 1, __ATOMIC_RELAXED);
    size_t runs = ceil_div(packing->parts, RUN), task;
    while (next_task(&packing->tasks, &packing->call->pool, worker, &task)) {
        size_t panel = task / runs, first = task % runs * RUN;
        for (size_t part = first; part < minimum(first + RUN, packing->parts); part++)
            pack_columns(packing, panel, part * packing->columns);
    }
}

static enum status pack(const struct pack *call) {
    struct packing packing = {.call = call, .search = new_search((enum format)call->format)};
    packing.columns = call->format == Q8 ? GROUP : SCALED;
    packing.parts = ceil_div((size_t)call->columns, packing.columns);
    packing.tasks.count = ceil_div((size_t)call->rows, PANEL_ROWS) * ceil_div(packing.parts, RUN);
    run(&call->pool, pack_tasks, &packing);
    return packing.not_finite ? NOT_FINITE : packing.too_large ? TOO_LARGE : DONE;
}

#endif
