/* Blocks of mxfp4, Q4_0 and IQ4_NL as others publish them, laid out in tiles: the indices and scales that
   formats/grouped.py finds for the numbers they stand for, which are not always those of the block. */
#ifndef MOECLI_REPACK_H
#define MOECLI_REPACK_H

#include "pack.inc.h"

#define EACH_NIBBLE 0x1111111111111111u
#define ZERO_EXPONENT 124    /* of a group of zeros */
#define LARGEST_KEPT 140     /* 12 times 2^(140 - 128) is below LARGEST_SCALE, 8 times the next is not */
#define LARGEST_EXPONENT 252 /* above it no reader takes an exponent for a number */
#define ZERO_INDEX 8         /* of Q4_0 and IQ4_NL: the code nearest to 0 */

/* 32 indices: byte b = 0..15 has that of column b in its low nibble and that of column 16 + b in its high one. */
struct indices {
    uint64_t words[2];
};

/* The other scales that keep a group of Q4_0 or IQ4_NL: they make another of the codes the one of its largest weight.
 */
struct rescaling {
    const int8_t *codes;
    int order[15];         /* of the indices, largest code first, as grouped.py tries them; without that of the least */
    uint16_t kept[16][15]; /* [largest][place in the order]: the indices whose codes are codes then */
};

struct repacking {
    const struct repack *call;
    struct rescaling rescaling;
    int is_unfit; /* a scale is no finite number, or too large */
};

/* The index of `code` where `from` has become `to`; -1 if it is none. */
static int index_after(const int8_t *codes, int code, int from, int to) {
    for (int index = 0; index < 16; index++)
        if (codes[index] * from == code * to)
            return index;
    return -1;
}

static struct rescaling new_rescaling(enum format format) {
    struct rescaling made = {.codes = format == Q4_0 ? q4_0_table : iq4_nl_table};
    int count = 0;
    for (int magnitude = 127; magnitude; magnitude--)
        for (int index = 0; index < 16; index++)
            if (abs(made.codes[index]) == magnitude && count < 15)
                made.order[count++] = index;
    for (int from = 0; from < 16; from++)
        for (int place = 0; place < 15 && made.order[place] != from; place++)
            for (int index = 0; made.codes[from] && index < 16; index++) {
                int moved = index_after(made.codes, made.codes[index], made.codes[from], made.codes[made.order[place]]);
                made.kept[from][place] |= (uint16_t)((moved >= 0) << index);
            }
    return made;
}

/* A bit for each nibble that is not 0, its lowest; with `mask` 7 of its three lower bits alone. */
INLINE uint64_t not_zero(uint64_t word, const uint64_t mask) {
    word &= mask * EACH_NIBBLE;
    return (word | word >> 1 | word >> 2 | word >> 3) & EACH_NIBBLE;
}

/* Eight nibbles, a byte each. */
INLINE uint64_t spread(uint64_t nibbles) {
    nibbles = (nibbles | nibbles << 16) & 0x0000ffff0000ffffu;
    nibbles = (nibbles | nibbles << 8) & 0x00ff00ff00ff00ffu;
    return (nibbles | nibbles << 4) & 0x0f0f0f0f0f0f0f0fu;
}

INLINE struct indices read_indices(const uint8_t *block, int paired) {
    struct indices found;
    memcpy(&found, block, sizeof found);
    if (!paired)
        return found;
    uint64_t low = found.words[0], high = found.words[1]; /* columns 0 to 15, and 16 to 31 */
    return (struct indices){
        {spread((uint32_t)low) | spread((uint32_t)high) << 4, spread(low >> 32) | spread(high >> 32) << 4}};
}

INLINE int index_at(const struct indices *block, int column) {
    return ((const uint8_t *)block)[column % 16] >> column / 16 * 4 & 15;
}

static void look_up(struct indices *block, const uint8_t *table) {
    uint8_t *bytes = (uint8_t *)block;
    for (int i = 0; i < 16; i++)
        bytes[i] = (uint8_t)(table[bytes[i] & 15] | table[bytes[i] >> 4] << 4);
}

/* mxfp4: there is one 0, and the largest code is 8 or 12, as far as exponents reach. */
INLINE uint8_t with_exponent(struct repacking *repacking, struct indices *block, uint8_t exponent) {
    static const uint8_t doubled[16] = {0, 2, 4, 5, 6, 7, 0, 0, 0, 10, 12, 13, 14, 15, 0, 0};
    uint64_t any = 0, large = 0;
    for (int i = 0; i < 2; i++) {
        uint64_t word = block->words[i], numbers = not_zero(word, 7);
        block->words[i] = word & numbers * 15;
        any |= numbers;
        large |= word >> 1 & word >> 2;
    }
    if (exponent > LARGEST_EXPONENT)
        repacking->is_unfit = 1;
    if (!any)
        return ZERO_EXPONENT;
    for (; !(large & EACH_NIBBLE) && exponent; exponent--) {
        look_up(block, doubled);
        large = (block->words[0] >> 1 & block->words[0] >> 2) | (block->words[1] >> 1 & block->words[1] >> 2);
    }
    if (exponent > LARGEST_KEPT)
        repacking->is_unfit = 1;
    return exponent;
}

/* A group of zeros; the scale has the sign that dividing the first of them by a negative code leaves. */
static uint16_t zero_scale(struct indices *block, int is_negative) {
    memset(block, ZERO_INDEX | ZERO_INDEX << 4, sizeof *block);
    return is_negative ? 0 : 0x8000;
}

/* The first of the indices whose code is farthest from 0. */
static int farthest(const int8_t *codes, const struct indices *block) {
    int found = index_at(block, 0);
    for (int column = 1; column < GROUP; column++) {
        int index = index_at(block, column);
        found = abs(codes[index]) > abs(codes[found]) ? index : found;
    }
    return found;
}

/* The first scale that keeps numbers of which the `largest` has been given code `from`. */
static uint16_t rescaled(const struct rescaling *rescaling, struct indices *block, uint16_t scale, int from,
                         float largest) {
    const int8_t *codes = rescaling->codes;
    unsigned used = 0;
    for (int column = 0; column < GROUP; column++)
        used |= 1u << index_at(block, column);
    for (int place = 0; rescaling->order[place] != from; place++) {
        int to = codes[rescaling->order[place]];
        uint16_t other = to_fp16(largest / (float)to);
        if ((used & ~rescaling->kept[from][place]) || from_fp16(other) * (float)to != largest)
            continue;
        uint8_t moved[16];
        for (int index = 0; index < 16; index++)
            moved[index] = (uint8_t)(index_after(codes, codes[index], codes[from], to) & 15);
        look_up(block, moved);
        return other;
    }
    return scale;
}

/* Q4_0 and IQ4_NL: nothing changes where the largest code, which has index 0, occurs. */
INLINE uint16_t with_half(struct repacking *repacking, struct indices *block, uint16_t scale) {
    const int8_t *codes = repacking->rescaling.codes;
    uint64_t above = not_zero(block->words[0], 15) & not_zero(block->words[1], 15);
    int from = above == EACH_NIBBLE ? farthest(codes, block) : 0;
    float largest = from_fp16(scale) * (float)codes[from];
    if (!(fabsf(largest) <= LARGEST_SCALE))
        repacking->is_unfit = 1;
    if (largest == 0)
        return zero_scale(block, scale >> 15 ^ (codes[index_at(block, 0)] < 0));
    return from ? rescaled(&repacking->rescaling, block, scale, from, largest) : scale;
}

/* What follows for a group: its scale at that of the row, and 4 bytes in each of 4 lines. */
INLINE void put_group_of_row(struct repacking *repacking, const int format, struct indices block, const uint8_t *scale,
                             uint8_t *scale_at, uint8_t *lines) {
    if (format == MXFP4) {
        *scale_at = with_exponent(repacking, &block, *scale);
    } else {
        uint16_t half;
        memcpy(&half, scale, 2);
        half = with_half(repacking, &block, half);
        memcpy(scale_at, &half, 2);
    }
    for (int j = 0; j < 4; j++)
        memcpy(lines + j * LINE, (const uint8_t *)&block + 4 * j, 4);
}

/* Groups of a tile, row by row; rows below the matrix are zeros. */
INLINE void repack_tile(struct repacking *repacking, const int format, size_t row, size_t group, size_t groups,
                        uint8_t *packed) {
    static const uint8_t nothing[2];
    const struct repack *call = repacking->call;
    struct tile tile = tile_of(format, packed, groups);
    const size_t scale_size = multiple_bytes(format) / PANEL_ROWS;
    for (size_t r = 0; r < PANEL_ROWS; r++) {
        int64_t at = (int64_t)(row + r), first = (int64_t)group;
        const uint8_t *indices = (const uint8_t *)call->indices + at * call->row_stride + first * call->group_stride;
        const uint8_t *scales =
            (const uint8_t *)call->scales + at * call->scale_row_stride + first * call->scale_group_stride;
        int is_there = at < call->rows;
        for (size_t g = 0; g < groups; g++) {
            struct indices block = {{ZERO_INDEX * EACH_NIBBLE, ZERO_INDEX * EACH_NIBBLE}};
            if (is_there)
                block = read_indices(indices + (int64_t)g * call->group_stride, call->paired);
            put_group_of_row(repacking, format, block,
                             is_there ? scales + (int64_t)g * call->scale_group_stride : nothing,
                             (uint8_t *)tile.multiples + g * multiple_stride(format) + r * scale_size,
                             (uint8_t *)tile.lines + g * line_stride(format) + 4 * r);
        }
    }
}

INLINE void repack_panel(struct repacking *repacking, const int format, size_t panel) {
    struct shape shape = {(enum format)format, (size_t)repacking->call->rows, (size_t)repacking->call->columns};
    uint8_t *bytes = (uint8_t *)repacking->call->packed + panel * panel_bytes(shape);
    for (size_t group = 0; group < groups_across(shape); group += CHUNK)
        repack_tile(repacking, format, panel * PANEL_ROWS, group, minimum(CHUNK, groups_across(shape) - group),
                    bytes + groups_bytes(format, group));
}

/* One thread is enough: it does little more than read and write. */
static enum status repack(const struct repack *call) {
    struct repacking repacking = {.call = call, .rescaling = new_rescaling((enum format)call->format)};
    for (size_t panel = 0; panel < ceil_div((size_t)call->rows, PANEL_ROWS); panel++)
        if (call->format == MXFP4)
            repack_panel(&repacking, MXFP4, panel);
        else
            repack_panel(&repacking, Q4_0, panel); /* IQ4_NL lies alike, and `rescaling` knows its codes */
    return repacking.is_unfit ? NOT_FINITE : DONE;
}

#endif
