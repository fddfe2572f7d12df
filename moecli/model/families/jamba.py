"""Jamba: Mamba blocks with attention in every eighth, a mixture in every second (arXiv 2403.19887)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import GROUPED_QUERY, Family, both_layouts, gguf_layouts, names
from moecli.model.families._parts import check_router, grouped_query, layer_count, make_spec
from moecli.model.families._recurrent import mamba, mamba_names
from moecli.model.spec import NO_ATTENTION, NO_ROPE, Activation, FeedForward, Layer, Mixture, ModelSpec, Router


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "jamba")
    c.alias("num_experts", "num_local_experts")
    c.ignore("use_mamba_kernels", "use_mambapy", "use_associative_scan", "num_logits_to_keep")  # how, not what
    c.ignore("layers_block_type", "layer_types")  # which the periods say
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 262_144)
    attention = grouped_query(c, hidden_size, context, heads=32, kv_heads=8, window=c.optional_count("sliding_window"))
    attention = replace(attention, rope=NO_ROPE)
    c.expect("hidden_act", "silu")  # of the convolutions too
    ffn = FeedForward(c.count("intermediate_size", 14336), Activation.SILU)
    mixture = Mixture(Router(c.count("num_experts", 16), c.count("num_experts_per_tok", 2)), ffn)
    check_router(c, mixture)
    every, first = c.count("attn_layer_period", 8), c.count("attn_layer_offset", 4, least=0)
    sparse_every, sparse_first = c.count("expert_layer_period", 2), c.count("expert_layer_offset", 1, least=0)
    eps, rank = c.number("rms_norm_eps", 1e-6), c.raw("mamba_dt_rank", "auto")
    mixer = mamba(
        hidden_size,
        inner=c.count("mamba_expand", 2) * hidden_size,
        state_dim=c.count("mamba_d_state", 16),
        kernel=c.count("mamba_d_conv", 4, least=2),
        rank=-(-hidden_size // 16) if rank == "auto" else c.count("mamba_dt_rank"),
        conv_bias=c.flag("mamba_conv_bias", True),
        bias=c.flag("mamba_proj_bias", False),
        eps=eps,
    )

    def layer(index: int) -> Layer:
        sparse = mixture.router.experts > 1 and (index - sparse_first) % sparse_every == 0
        half = mixture if sparse else ffn
        attends = (index - first) % every == 0
        return Layer(attention, half) if attends else Layer(NO_ATTENTION, half, mixer)

    return make_spec(
        c, [layer(index) for index in range(layer_count(c, 32))], hidden_size=hidden_size, context=context, vocab=65536,
        eps=eps,
    )  # fmt: skip


_LAYER = "model.layers.{layer}."
_NAMES = (
    names("model.", embedding="embed_tokens", final_norm="final_layernorm")
    | names(lm_head="lm_head")
    | names(_LAYER, attn_norm="input_layernorm", ffn_norm="pre_ff_layernorm")
    | GROUPED_QUERY
    | mamba_names(_LAYER + "mamba.")
    | names(_LAYER + "mamba.", ".bias", mixer_step_bias="dt_proj")
    | names(_LAYER + "feed_forward.", gate_up="gate_proj up_proj", down="down_proj", router="router")
)
FAMILY = Family(
    architectures=("JambaForCausalLM",),
    model_types=("jamba",),
    read=read,
    layouts=(*both_layouts(_NAMES, "feed_forward.experts"), *gguf_layouts()),
)
