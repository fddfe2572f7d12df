/* Every tier against the last one, scalar: packing, one matrix and experts must agree in every byte. Buffers have their
   exact sizes, for a sanitiser; the same program checks other processors in an emulator. */
#include "native.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int moecli_linear(int tier, const struct linear *call);
int moecli_feed_forward(int tier, const struct feed_forward *call);
int moecli_pack(int tier, const struct pack *call);
const char *moecli_tier(int index);

static uint32_t state = 1;
static int failures;

/* Roughly bell-shaped, with a few far outliers. */
static float number(void) {
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        state = state * 1664525u + 1013904223u;
        sum += (float)(state >> 8) / 16777216.0f - 0.5f;
    }
    return state >> 24 == 7 ? 20 * sum : sum;
}

static size_t size_of(int format, size_t rows, size_t columns) {
    size_t strips = (rows + 15) / 16;
    return format == Q4 ? strips * ((columns + 127) / 128) * 1088 : strips * ((columns + 31) / 32) * 544;
}

static float *numbers(size_t count) {
    float *result = malloc(count * sizeof *result);
    for (size_t i = 0; i < count; i++)
        result[i] = number();
    return result;
}

static void check(const char *what, int tier, int format, const void *found, void **expected, size_t bytes) {
    if (!*expected) {
        *expected = malloc(bytes);
        memcpy(*expected, found, bytes);
    } else if (memcmp(found, *expected, bytes)) {
        printf("%s differs on %s, format %d\n", what, moecli_tier(tier), format);
        failures++;
    }
}

static uint8_t *packed_matrix(int last, int format, size_t rows, size_t columns, int type) {
    float *weights = numbers(rows * columns);
    size_t bytes = size_of(format, rows, columns);
    void *expected = NULL, *packed = malloc(bytes);
    for (int tier = last; tier >= 0; tier--) {
        if (!*moecli_tier(tier))
            continue;
        struct pack call = {{0}, format, type, weights, (int64_t)rows, (int64_t)columns, (int64_t)columns, 1, packed};
        moecli_pack(tier, &call);
        check("pack", tier, format, packed, &expected, bytes);
    }
    free(weights);
    free(packed);
    return expected;
}

static void try(int last, int format, size_t inner, size_t width, size_t count, int activation) {
    uint8_t *matrices[6];
    for (int i = 0; i < 6; i++)
        matrices[i] = packed_matrix(last, format, i % 3 == 2 ? width : inner, i % 3 == 2 ? inner : width, FP32);
    float *x = numbers(count * width), *out = malloc(2 * count * (inner + width) * sizeof *out);
    void *one = NULL, *layer = NULL;
    for (int tier = last; tier >= 0; tier--) {
        if (!*moecli_tier(tier))
            continue;
        struct tokens input = {x, FP32, (int64_t)count, (int64_t)width};
        struct linear linear = {{0}, format, input, matrices[0], (int64_t)inner, out};
        moecli_linear(tier, &linear);
        check("linear", tier, format, out, &one, count * inner * sizeof *out);
        const void *const *list = (const void *const *)matrices;
        struct feed_forward feed = {{0}, format, activation, input, list, 2, (int64_t)inner, out};
        moecli_feed_forward(tier, &feed);
        check("feed_forward", tier, format, out, &layer, 2 * count * width * sizeof *out);
    }
    for (int i = 0; i < 6; i++)
        free(matrices[i]);
    free(x), free(out), free(one), free(layer);
}

int main(void) {
    int last = 0;
    while (moecli_tier(last + 1))
        last++;
    for (int tier = 0; tier <= last; tier++)
        printf("%s ", moecli_tier(tier));
    printf("\n");
    static const size_t shapes[][2] = {{64, 256}, {5, 7}, {40, 100}, {17, 129}};
    static const size_t counts[] = {1, 2, 3, 4, 5, 6, 19};
    for (int format = Q4; format <= Q8; format++)
        for (size_t shape = 0; shape < sizeof shapes / sizeof *shapes; shape++)
            for (size_t count = 0; count < sizeof counts / sizeof *counts; count++)
                try(last, format, shapes[shape][0], shapes[shape][1], counts[count], (int)(count % 4));
    printf("%d failures\n", failures);
    return failures != 0;
}
