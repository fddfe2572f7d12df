/* The public functions: which instruction sets of this library the processor can run, and the calls by their number. */
#include "layout.h"

#if defined __x86_64__
#include <cpuid.h>
#elif defined __aarch64__ && defined __linux__
#include <sys/auxv.h>
#endif

#define PUBLIC __attribute__((visibility("default")))
#define UNUSED __attribute__((unused)) /* by a compiler that could not make the instruction set */

UNUSED static int scalar_runs(void) { return 1; }

#if defined __x86_64__
UNUSED static int avx2_runs(void) {
    unsigned a, b, c = 0, d;
    int f16c = __get_cpuid(1, &a, &b, &c, &d) && c >> 29 & 1;
    return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

UNUSED static int avxvnni_runs(void) {
    unsigned a, b, c, d;
    return avx2_runs() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}

UNUSED static int avx512_runs(void) {
    return avx2_runs() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

#if defined __aarch64__
UNUSED static int neon_runs(void) {
#if defined __linux__
    return getauxval(AT_HWCAP) >> 20 & 1; /* dot products */
#else
    return 1; /* every Apple processor has them */
#endif
}
#endif

#define ISA(name) extern const struct isa moecli_##name;
MOECLI_ISAS
#undef ISA

/* Best first. */
static const struct {
    const struct isa *isa;
    int (*runs)(void);
} isas[] = {
#define ISA(name) {&moecli_##name, name##_runs},
    MOECLI_ISAS
#undef ISA
};

/* Changes whenever a function does; of the structures `moecli_layout` tells. */
PUBLIC int moecli_version(void) { return 9; }

/* A row of the table of fields; NULL past the last. */
PUBLIC const struct layout *moecli_layout(int index) {
    return index < 0 || (size_t)index >= sizeof layouts / sizeof *layouts ? NULL : &layouts[index];
}

/* The name of an instruction set: NULL past the last, empty where this processor cannot run it. */
PUBLIC const char *moecli_isa(int index) {
    if (index < 0 || (size_t)index >= sizeof isas / sizeof *isas)
        return NULL;
    return isas[index].runs() ? isas[index].isa->name : "";
}

PUBLIC int moecli_linear(int isa, const struct linear *call) { return isas[isa].isa->linear(call); }

PUBLIC int moecli_feed_forward(int isa, const struct feed_forward *call) { return isas[isa].isa->feed_forward(call); }

PUBLIC int moecli_gated(int isa, const struct feed_forward *call) { return isas[isa].isa->gated(call); }

PUBLIC int moecli_weighted_sum(int isa, const struct weighted_sum *call) { return isas[isa].isa->weighted_sum(call); }

PUBLIC int moecli_pack(int isa, const struct pack *call) { return isas[isa].isa->pack(call); }

PUBLIC int moecli_repack(int isa, const struct repack *call) { return isas[isa].isa->repack(call); }

PUBLIC int moecli_decode_step(int isa, const struct decode_step *call) { return isas[isa].isa->decode_step(call); }

/* The first step of a mixture of experts and its last, for whoever computes the experts in between. */
PUBLIC int moecli_route(int isa, const struct moe *call) { return isas[isa].isa->route(call); }

PUBLIC int moecli_combine(int isa, const struct moe *call) { return isas[isa].isa->combine(call); }

PUBLIC int moecli_prompt_attention(int isa, const struct prompt_attention *call) {
    return isas[isa].isa->prompt_attention(call);
}

/* A recurrent mixer between its two projections, for whoever makes these. */
PUBLIC int moecli_mix(int isa, const struct recurrent *call) { return isas[isa].isa->mix(call); }
