"""Phi-3.5-MoE: sparsemixer routing, layer norms with biases, a head with a bias (microsoft/Phi-3.5-MoE-instruct)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import grouped_query, make_spec, uniform_layers
from moecli.model.spec import FeedForward, Mixture, ModelSpec, NormKind, Router, Scoring
from moecli.model.unsupported import Unsupported


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(_with_one_temperature(config), "phimoe")
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 131_072)
    bias = c.flag("attention_bias", False)
    window = c.optional_count("sliding_window")
    attention = grouped_query(
        c, hidden_size, context, heads=32, kv_heads=8, theta=1e6, qkv_bias=bias, output_bias=bias,
        window=window if window is not None and window < context else None,
    )  # fmt: skip
    c.ignore("original_max_position_embeddings", "input_jitter_noise")  # inside rope_scaling as well; training
    router = Router(c.count("num_local_experts", 16), c.count("num_experts_per_tok", 2), Scoring.SPARSEMIXER)
    expert = FeedForward(c.count("intermediate_size", 6400), c.activation("hidden_act", "silu"))
    return make_spec(
        c, uniform_layers(c, attention, Mixture(router, expert), default=32),
        hidden_size=hidden_size, context=context, vocab=32064, eps=1e-5,
        norm=NormKind.LAYER, norm_bias=True, lm_head_bias=c.flag("lm_head_bias", False),
        unsupported=(Unsupported.SPARSEMIXER, Unsupported.NORM_BIAS, Unsupported.LM_HEAD_BIAS),
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


FAMILY = Family(architectures=("PhiMoEForCausalLM", "PhimoeForCausalLM"), model_types=("phimoe",), read=read)
