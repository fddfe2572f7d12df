/* The tier of any machine: plain C. */
#include "numbers.h"

#define TIER scalar
#define LANES 16
#define STRIPS 1
#define TOKENS 4

typedef struct {
    int8_t at[LANES][4];
} codes;
typedef struct {
    int32_t at[LANES];
} ints;
typedef struct {
    float at[LANES];
} floats;

#define EACH_LANE for (int i = 0; i < LANES; i++)

static const int8_t codebook[16] = CODEBOOK;

INLINE ints start(int32_t value) {
    (void)value;
    return (ints){{0}};
}

INLINE ints dot(ints sum, codes line, const int8_t *x) {
    EACH_LANE sum.at[i] += line.at[i][0] * x[0] + line.at[i][1] * x[1] + line.at[i][2] * x[2] + line.at[i][3] * x[3];
    return sum;
}

INLINE void q4_codes(const uint8_t *line, codes *low, codes *high) {
    EACH_LANE for (int b = 0; b < 4; b++) {
        low->at[i][b] = codebook[line[4 * i + b] & 15];
        high->at[i][b] = codebook[line[4 * i + b] >> 4];
    }
}

INLINE codes load_codes(const uint8_t *bytes) {
    codes line;
    memcpy(&line, bytes, sizeof line);
    return line;
}

INLINE void store_codes(uint8_t *bytes, codes line) { memcpy(bytes, &line, sizeof line); }

INLINE codes q8_codes(const uint8_t *line) { return load_codes(line); }

INLINE floats scales(const uint8_t *line) {
    floats result;
    EACH_LANE result.at[i] = from_fp16((uint16_t)(line[2 * i] | line[2 * i + 1] << 8));
    return result;
}

INLINE floats load(const float *numbers) {
    floats result;
    memcpy(&result, numbers, sizeof result);
    return result;
}

INLINE void store(float *numbers, floats result) { memcpy(numbers, &result, sizeof result); }

INLINE floats add(floats total, ints sum, float activation_scale, floats scale) {
    EACH_LANE total.at[i] = fmaf((float)sum.at[i] * activation_scale, scale.at[i], total.at[i]);
    return total;
}

static int usable(void) { return 1; }

#include "layer.h"
