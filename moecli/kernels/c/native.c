/* The public functions: which tiers this library has and this processor can run, and the calls, by tier. */
#include "native.h"

#if defined __x86_64__
#include <cpuid.h>
#elif defined __aarch64__ && defined __linux__
#include <sys/auxv.h>
#endif

#define PUBLIC __attribute__((visibility("default")))
#define UNUSED __attribute__((unused)) /* by a compiler that could not make the tier */

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

#define TIER(name) extern const struct tier moecli_##name;
MOECLI_TIERS
#undef TIER

/* Best first. */
static const struct {
    const struct tier *tier;
    int (*runs)(void);
} tiers[] = {
#define TIER(name) {&moecli_##name, name##_runs},
    MOECLI_TIERS
#undef TIER
};

/* Changes whenever a structure or a function does. */
PUBLIC int moecli_version(void) { return 2; }

/* The name of a tier: NULL past the last, empty where this processor cannot run it. */
PUBLIC const char *moecli_tier(int index) {
    if (index < 0 || (size_t)index >= sizeof tiers / sizeof *tiers)
        return NULL;
    return tiers[index].runs() ? tiers[index].tier->name : "";
}

PUBLIC int moecli_linear(int tier, const struct linear *call) { return tiers[tier].tier->linear(call); }

PUBLIC int moecli_feed_forward(int tier, const struct feed_forward *call) {
    return tiers[tier].tier->feed_forward(call);
}

PUBLIC int moecli_gated(int tier, const struct feed_forward *call) { return tiers[tier].tier->gated(call); }

PUBLIC int moecli_pack(int tier, const struct pack *call) { return tiers[tier].tier->pack(call); }

PUBLIC int moecli_pass(int tier, const struct pass *call) { return tiers[tier].tier->pass(call); }

/* The first step of a mixture and its last, for whoever computes the experts in between. */
PUBLIC int moecli_route(int tier, const struct mixture *call) { return tiers[tier].tier->route(call); }

PUBLIC int moecli_conclude(int tier, const struct mixture *call) { return tiers[tier].tier->conclude(call); }
