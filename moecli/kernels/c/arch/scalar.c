/* Any machine: plain C. */
#include "../generic/numbers.inc.h"

#define ISA scalar
#define LANES 16
#define PANELS 1
#define TOKENS 1
#define TILE_ROWS 2
#define TILE_VECTORS 1
#define BUFFER_ROWS 4

typedef struct {
    int8_t at[4][LANES]; /* a column after the other, as loops like it */
} codes;
typedef struct {
    int32_t at[LANES];
} ints;
typedef struct {
    float at[LANES];
} floats;

typedef floats table;

#define EACH_LANE for (int i = 0; i < LANES; i++)
#define EACH_COLUMN for (int b = 0; b < 4; b++)

static const int8_t q4_table[16] __attribute__((aligned(16))) = Q4_CODES;
static const int8_t q3_table[16] __attribute__((aligned(16))) = Q3_CODES;
static const int8_t mxfp4_table[16] __attribute__((aligned(16))) = MXFP4_CODES;
static const int8_t q4_0_table[16] __attribute__((aligned(16))) = Q4_0_CODES;
static const int8_t iq4_nl_table[16] __attribute__((aligned(16))) = IQ4_NL_CODES;
static const float normal[16] = NORMAL_FLOAT;
static const int8_t multiple[16] __attribute__((aligned(16))) = MULTIPLES;

INLINE ints q8_start(int32_t value) {
    (void)value;
    return (ints){{0}};
}

INLINE ints book_start(int32_t value) { return q8_start(value); }

INLINE ints q8_dot(ints sum, codes line, const int8_t *x) {
    EACH_COLUMN
        EACH_LANE
            sum.at[i] += (int16_t)line.at[b][i] * (int16_t)x[b];
    return sum;
}

INLINE ints book_dot(ints sum, codes first, codes second, const int8_t *x) {
    return q8_dot(q8_dot(sum, first, x), second, x + 4);
}

INLINE void nibble_codes(const int8_t *codes_of, const int wide, const uint8_t *line, codes *low, codes *high) {
    (void)wide;
    EACH_LANE
        EACH_COLUMN {
            low->at[b][i] = codes_of[line[4 * i + b] & 15];
            high->at[b][i] = codes_of[line[4 * i + b] >> 4];
        }
}

INLINE codes q3_codes(const uint8_t *two, const uint8_t *one, const int place) {
    codes result;
    EACH_LANE
        EACH_COLUMN {
            int low = two[4 * i + b] >> 2 * (place & 3) & 3, high = one[4 * i + b] >> place & 1;
            result.at[b][i] = q3_table[4 * high + low];
        }
    return result;
}

INLINE codes q8_codes(const uint8_t *line) {
    codes result;
    EACH_LANE
        EACH_COLUMN
            result.at[b][i] = (int8_t)line[4 * i + b];
    return result;
}

INLINE codes load_codes(const uint8_t *bytes) {
    codes line;
    memcpy(&line, bytes, sizeof line);
    return line;
}

INLINE void store_codes(uint8_t *bytes, codes line) { memcpy(bytes, &line, sizeof line); }

INLINE floats scales(const uint8_t *line) {
    floats result;
    EACH_LANE
        result.at[i] = from_fp16((uint16_t)(line[2 * i] | line[2 * i + 1] << 8));
    return result;
}

INLINE void multiples(const uint8_t *bytes, floats *low, floats *high) {
    EACH_LANE {
        low->at[i] = multiple[bytes[i] & 15];
        high->at[i] = multiple[bytes[i] >> 4];
    }
}

INLINE floats powers(const uint8_t *exponents) {
    floats result;
    EACH_LANE
        result.at[i] = from_bits((uint32_t)(exponents[i] + POWER_BIAS) << 23);
    return result;
}

INLINE floats to_floats(ints numbers) {
    floats result;
    EACH_LANE
        result.at[i] = (float)numbers.at[i];
    return result;
}

INLINE floats load(const float *numbers) {
    floats result;
    memcpy(&result, numbers, sizeof result);
    return result;
}

INLINE void store(float *numbers, floats result) { memcpy(numbers, &result, sizeof result); }

INLINE floats add(floats total, ints sum, float activation_scale, floats scale) {
    EACH_LANE
        total.at[i] = fmaf((float)sum.at[i] * activation_scale, scale.at[i], total.at[i]);
    return total;
}

INLINE floats add_product(floats total, floats numbers, float factor) {
    EACH_LANE
        total.at[i] = fmaf(numbers.at[i], factor, total.at[i]);
    return total;
}

INLINE floats times(floats a, floats b) {
    EACH_LANE
        a.at[i] *= b.at[i];
    return a;
}

INLINE floats larger(floats a, floats b) {
    EACH_LANE
        a.at[i] = a.at[i] > b.at[i] ? a.at[i] : b.at[i];
    return a;
}

INLINE floats fused(floats total, floats a, floats b) {
    EACH_LANE
        total.at[i] = fmaf(a.at[i], b.at[i], total.at[i]);
    return total;
}

INLINE float sum_lanes(const floats *sums) { return sum_of(sums->at); }

INLINE floats bf16_floats(const uint8_t *numbers) {
    floats result;
    EACH_LANE
        result.at[i] = from_bf16((uint16_t)(numbers[2 * i] | numbers[2 * i + 1] << 8));
    return result;
}

INLINE floats int8_floats(const uint8_t *numbers) {
    floats result;
    EACH_LANE
        result.at[i] = (float)(int8_t)numbers[i];
    return result;
}

INLINE table nf4_table(float scale) {
    table values;
    EACH_LANE
        values.at[i] = normal[i] * scale;
    return values;
}

INLINE floats nf4_floats(table values, const uint8_t *nibbles) {
    floats result;
    EACH_LANE
        result.at[i] = values.at[nibbles[i / 2] >> (i % 2 ? 0 : 4) & 15];
    return result;
}

#include "../generic/isa.inc.h"
