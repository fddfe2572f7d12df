/* A tier: all calls, compiled for its instructions. */
#include "attention.h"
#include "mixture.h"

#define NAMED(name) NAMED_(name)
#define NAMED_(name) moecli_##name
#define TEXT(name) TEXT_(name)
#define TEXT_(name) #name
const struct tier NAMED(TIER) = {TEXT(TIER), linear, feed_forward, gated,  pack,
                                 attention,  route,  mixture,      conclude};
