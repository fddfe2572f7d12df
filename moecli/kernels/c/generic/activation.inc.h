/* The nonlinearities of feed-forward blocks, from one polynomial exponential. */
#ifndef MOECLI_ACTIVATION_H
#define MOECLI_ACTIVATION_H

#include "numbers.inc.h"

/* 2**k times a minimax polynomial of the rest, relative error 1e-7; numbers are cut at +-87. */
INLINE float exponential(float x) {
    x = x < -87 ? -87 : x > 87 ? 87 : x;
    float shifted = fmaf(x, 1.44269504f, ROUND_MAGIC), turns = shifted - ROUND_MAGIC;
    float rest = fmaf(turns, -0x1.62e4p-1f, x);
    rest = fmaf(turns, -1.42860682e-6f, rest);
    float sum = fmaf(0.0013836834f, rest, 0.008374822f);
    sum = fmaf(sum, rest, 0.041668225f);
    sum = fmaf(sum, rest, 0.1666642f);
    sum = fmaf(sum, rest, 0.4999999f);
    sum = fmaf(sum, rest, 1);
    sum = fmaf(sum, rest, 1);
    return sum * from_bits((bits_of(shifted) + 127) << 23);
}

INLINE float silu(float x) { return x / (1 + exponential(-x)); }

/* x (1 + tanh(u)) / 2 is x / (1 + exp(-2 u)) */
INLINE float gelu_tanh(float x) { return x / (1 + exponential(-1.59576912f * fmaf(0.044715f * x * x, x, x))); }

/* erfc(z) = t f(t) exp(-z z), t = 1 / (1 + 0.4 z): f fitted for z up to 10, relative error 1e-7 */
INLINE float gelu(float x) {
    float z = fabsf(x) * 0.707106781f, t = 1 / fmaf(0.4f, z, 1);
    float sum = fmaf(0.041253332f, t, -0.14032063f);
    sum = fmaf(sum, t, 0.083990104f);
    sum = fmaf(sum, t, 0.087961204f);
    sum = fmaf(sum, t, 0.079758592f);
    sum = fmaf(sum, t, 0.19339235f);
    sum = fmaf(sum, t, 0.20188780f);
    sum = fmaf(sum, t, 0.22644308f);
    sum = fmaf(sum, t, 0.22563423f);
    float tail = 0.5f * x * (sum * t * exponential(-z * z));
    return x > 0 ? x - tail : tail;
}

INLINE float relu(float x) { return x < 0 ? 0 : x; }
INLINE float relu_squared(float x) { return x < 0 ? 0 : x * x; }

INLINE float bounded(float x, float most) { return x > most ? most : x < -most ? -most : x; }

#define SWIGLU_ALPHA 1.702f
#define SWIGLU_LIMIT 7

/* gpt-oss: both are cut, and up counts from -1 */
INLINE float clamped_swiglu(float gate, float up) {
    float x = gate > SWIGLU_LIMIT ? SWIGLU_LIMIT : gate;
    return x / (1 + exponential(-SWIGLU_ALPHA * x)) * (bounded(up, SWIGLU_LIMIT) + 1);
}

/* Step: what silu makes of the gate is cut above, up on both sides */
INLINE float cut_swiglu(float gate, float up, float limit) {
    float opened = silu(gate);
    return (opened > limit ? limit : opened) * bounded(up, limit);
}

/* hidden = activation(gate) * up, for 32 numbers */
static void activate(enum activation activation, const float *gate, const float *up, float *hidden) {
#define EACH(f)                                                                                                        \
    for (int i = 0; i < GROUP; i++)                                                                                    \
        hidden[i] = f(gate[i]) * up[i];                                                                                \
    break
    switch (activation) {
    case SILU: EACH(silu);
    case GELU: EACH(gelu);
    case GELU_TANH: EACH(gelu_tanh);
    case RELU: EACH(relu);
    case RELU_SQUARED: EACH(relu_squared);
    case CLAMPED_SWIGLU:
        for (int i = 0; i < GROUP; i++)
            hidden[i] = clamped_swiglu(gate[i], up[i]);
        break;
    case SILU_TO_7:
    case SILU_TO_16:
        for (int i = 0; i < GROUP; i++)
            hidden[i] = cut_swiglu(gate[i], up[i], activation == SILU_TO_7 ? 7 : 16);
    }
#undef EACH
}

#endif
