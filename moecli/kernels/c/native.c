/* The public functions: which tiers this library has and this machine can run, and the calls, by tier. */
#include "native.h"

#define PUBLIC __attribute__((visibility("default")))

#define TIER(name) extern const struct tier moecli_##name;
MOECLI_TIERS
#undef TIER

/* Best first. */
static const struct tier *const tiers[] = {
#define TIER(name) &moecli_##name,
    MOECLI_TIERS
#undef TIER
};

/* Changes whenever a structure or a function does. */
PUBLIC int moecli_version(void) { return 1; }

/* The name of a tier; NULL past the last, empty where this machine cannot run it. */
PUBLIC const char *moecli_tier(int index) {
    if (index < 0 || (size_t)index >= sizeof tiers / sizeof *tiers)
        return NULL;
    return tiers[index]->usable() ? tiers[index]->name : "";
}

PUBLIC int moecli_linear(int tier, const struct linear *call) { return tiers[tier]->linear(call); }

PUBLIC int moecli_feed_forward(int tier, const struct feed_forward *call) { return tiers[tier]->feed_forward(call); }

PUBLIC int moecli_pack(int tier, const struct pack *call) { return tiers[tier]->pack(call); }
