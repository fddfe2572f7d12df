/* The last include of an instruction set: a token through whole blocks, and the table of its calls. */
#include "attention.inc.h"
#include "latent_attention.inc.h"
#include "moe.inc.h"

static enum status decode_step(const struct decode_step *call) {
    enum status status = DONE;
    for (int64_t i = 0; i < call->count && status == DONE; i++) {
        struct attention *attention = call->blocks[i].attention;
        struct latent_attention *latent = call->blocks[i].latent_attention;
        struct moe *moe = call->blocks[i].moe;
        if (attention) {
            attention->sublayer.x = call->x, attention->sublayer.pool.threads = call->threads;
            status = attention_forward(attention);
        }
        if (latent) {
            latent->sublayer.x = call->x, latent->sublayer.pool.threads = call->threads;
            status = latent_attention_forward(latent);
        }
        if (moe && status == DONE) {
            moe->sublayer.x = call->x, moe->sublayer.pool.threads = call->threads;
            status = moe_forward(moe);
        }
    }
    return status;
}

#define NAMED(name) NAMED_(name)
#define NAMED_(name) moecli_##name
#define TEXT(name) TEXT_(name)
#define TEXT_(name) #name
const struct isa NAMED(ISA) = {TEXT(ISA),   linear, feed_forward, gated,           pack,
                               decode_step, route,  combine,      prompt_attention};
