/* The last include of an instruction set: a few tokens through whole blocks, and the table of its calls. */
#include "attention.inc.h"
#include "latent_attention.inc.h"
#include "moe.inc.h"
#include "recurrent.inc.h"
#include "repack.inc.h"
#include "weighted_sum.inc.h"

static void take(struct sublayer *sublayer, const struct decode_step *call) {
    sublayer->x = call->x, sublayer->tokens = call->tokens, sublayer->pool.threads = call->threads;
}

static enum status decode_step(const struct decode_step *call) {
    enum status status = DONE;
    for (const struct block *block = call->blocks; block < call->blocks + call->count && status == DONE; block++) {
        if (block->moe)
            take(&block->moe->sublayer, call);
        if (block->moe && block->moe->reads_input)
            begin_sublayer(&block->moe->sublayer, block->moe->normed);
        if (block->attention) {
            take(&block->attention->sublayer, call);
            status = attention_forward(block->attention);
        }
        if (block->latent_attention) {
            take(&block->latent_attention->sublayer, call);
            status = latent_attention_forward(block->latent_attention);
        }
        if (block->recurrent) {
            take(&block->recurrent->sublayer, call);
            status = recurrent_forward(block->recurrent);
        }
        if (block->moe && status == DONE)
            status = moe_forward(block->moe);
    }
    return status;
}

#define NAMED(name) NAMED_(name)
#define NAMED_(name) moecli_##name
#define TEXT(name) TEXT_(name)
#define TEXT_(name) #name
const struct isa NAMED(ISA) = {TEXT(ISA), linear,      feed_forward, gated,   weighted_sum,     pack,
                               repack,    decode_step, route,        combine, prompt_attention, mix_projected};
