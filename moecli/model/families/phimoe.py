"""Phi-3.5-MoE: sparsemixer routing, layer norms with biases, a head with a bias (microsoft/Phi-3.5-MoE-instruct)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import BODY, BUFFERS, GROUPED_QUERY, Family, Layout, fused, names, per_expert
from moecli.model.families._parts import grouped_query, make_spec, uniform_layers
from moecli.model.spec import FeedForward, Mixture, ModelSpec, NormKind, Router, Scoring


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(_with_one_temperature(config), "phimoe")
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 131_072)
    bias = c.flag("attention_bias", False)
    window = c.optional_count("sliding_window")
    attention = grouped_query(
        c, hidden_size, context, heads=32, kv_heads=8, theta=1e6, qkv_bias=bias, output_bias=bias,
        window=window if window is not None and window < context else None,
    )  # fmt: skip
    c.optional_count("original_max_position_embeddings")  # inside rope_scaling as well
    c.ignore("input_jitter_noise")  # of training
    c.expect("num_experts_per_tok", 2)
    router = Router(
        c.count("num_local_experts", 16), 2, Scoring.SPARSEMIXER,
        jitter=c.number("router_jitter_noise", 0.01, positive=False),
    )  # fmt: skip
    expert = FeedForward(c.count("intermediate_size", 6400), c.activation("hidden_act", "silu"))
    return make_spec(
        c, uniform_layers(c, attention, Mixture(router, expert), default=32),
        hidden_size=hidden_size, context=context, vocab=32064, eps=1e-5,
        norm=NormKind.LAYER, norm_bias=True, lm_head_bias=c.flag("lm_head_bias", False),
    )  # fmt: skip


def _with_one_temperature(config: Mapping[str, Any]) -> dict[str, Any]:
    """LongRoPE's short_mscale and long_mscale are one number in every published file: the attention factor."""
    plain = dict(config)
    for key in ("rope_scaling", "rope_parameters"):
        scaling = plain.get(key)
        if isinstance(scaling, dict) and scaling.get("short_mscale") == scaling.get("long_mscale") is not None:
            rest = {k: v for k, v in scaling.items() if k not in ("short_mscale", "long_mscale")}
            plain[key] = rest | {"attention_factor": scaling["long_mscale"]}
    return plain


_LAYER = "model.layers.{layer}."
_DENSE = (
    BODY
    | GROUPED_QUERY
    | names("model.", ".bias", final_norm_bias="norm")
    | names("", ".bias", lm_head_bias="lm_head")
    | names(_LAYER, ".bias", attn_norm_bias="input_layernorm", ffn_norm_bias="post_attention_layernorm")
)
FAMILY = Family(
    architectures=("PhiMoEForCausalLM", "PhimoeForCausalLM"),
    model_types=("phimoe",),
    read=read,
    layouts=(
        Layout(
            _DENSE | names(_LAYER, router="block_sparse_moe.gate"),
            per_expert("block_sparse_moe.experts", "w1", "w3", "w2"),
            BUFFERS,
        ),
        Layout(_DENSE | names(_LAYER, router="mlp.router"), fused("mlp.experts"), BUFFERS),
    ),
)
