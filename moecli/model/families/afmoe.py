"""Trinity: gated heads, positions in three windows of four layers, none in the full one (AfmoeForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import (
    BODY,
    GROUPED_QUERY,
    MLP,
    SHARED_EXPERTS,
    Family,
    both_layouts,
    gguf_layouts,
    names,
)
from moecli.model.families._parts import check_router, grouped_query, layer_count, make_spec
from moecli.model.spec import NO_ROPE, FeedForward, Layer, Mixture, ModelSpec, QkNorm, Router, Scoring

_KINDS = ("sliding_attention", "full_attention")
# Other implementations read them; transformers' is written for these values.
_NEUTRAL = {"score_func": ("sigmoid", None), "route_norm": (True, None)} | dict.fromkeys(
    ("n_group", "topk_group", "num_expert_groups", "num_limited_groups"), (1, None)
)


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "afmoe", neutral=_NEUTRAL)
    c.ignore("load_balance_coeff", "use_grouped_mm")  # training, and how it is computed
    hidden_size, context = c.count("hidden_size", 2048), c.count("max_position_embeddings", 16384)
    bias = c.flag("attention_bias", False)
    sliding = grouped_query(
        c, hidden_size, context, heads=16, head_dim=128, qk_norm=QkNorm.HEAD, qkv_bias=bias, output_bias=bias,
        window=c.count("sliding_window", 1024),
    )  # fmt: skip
    sliding = replace(sliding, gate_width=sliding.query_width)
    full = replace(sliding, rope=NO_ROPE, window=None)
    activation, width = c.activation("hidden_act", "silu"), c.count("moe_intermediate_size", 1408)
    router = Router(
        c.count("num_experts", 64), c.count("num_experts_per_tok", 6), Scoring.SIGMOID, norm_power=1.0,
        norm_epsilon=1e-20, scaling=c.number("route_scale", 1.0), correction_bias=True,
    )  # fmt: skip
    shared = FeedForward(width * c.count("num_shared_experts", 2), activation)
    mixture = Mixture(router, FeedForward(width, activation), shared)
    check_router(c, mixture)
    dense = FeedForward(c.count("intermediate_size", 6144), activation)
    count, first = layer_count(c, 32), c.count("num_dense_layers", 1, least=0)
    every = c.count("global_attn_every_n_layers", 4)
    kinds = c.choices("layer_types", count, _KINDS, [_KINDS[(i + 1) % every == 0] for i in range(count)])
    layers = [
        Layer(full if kind == "full_attention" else sliding, mixture if i >= first else dense)
        for i, kind in enumerate(kinds)
    ]
    return make_spec(
        c, layers, hidden_size=hidden_size, context=context, vocab=200_192, eps=1e-5, branch_norms=True,
        embedding_multiplier=hidden_size**0.5 if c.optional_flag("mup_enabled", False) else 1.0,
    )  # fmt: skip


_LAYER = "model.layers.{layer}."
FAMILY = Family(
    architectures=("AfmoeForCausalLM",),
    model_types=("afmoe",),
    read=read,
    layouts=(
        *both_layouts(
            BODY
            | GROUPED_QUERY
            | MLP
            | SHARED_EXPERTS
            | names(
                _LAYER, post_attn_norm="post_attention_layernorm", ffn_norm="pre_mlp_layernorm",
                post_ffn_norm="post_mlp_layernorm", attn_gate="self_attn.gate_proj", router="mlp.router.gate",
            )
            | names(_LAYER, "", router_bias="mlp.expert_bias")
        ),
        *gguf_layouts(),
    ),
)  # fmt: skip
