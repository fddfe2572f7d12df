"""JetMoE-8B: the attention heads are routed experts too (arXiv 2404.07413)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import grouped_query, make_spec, uniform_layers
from moecli.model.spec import Extra, FeedForward, Mixture, ModelSpec, Part, Router, Scoring
from moecli.model.unsupported import Unsupported


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "jetmoe")
    hidden_size, context = c.count("hidden_size", 2048), c.count("max_position_embeddings", c.raw("n_positions", 4096))
    c.expect("glu", True)
    c.expect("rotary_percent", 1.0)
    c.ignore("num_layers", "layer_norm_epsilon", "aux_loss_coef")  # mirrors of other keys; training
    router = Router(
        c.count("moe_num_experts", c.raw("num_local_experts", 8)),
        c.count("moe_top_k", c.raw("num_experts_per_tok", 2)),
        Scoring.SOFTMAX_OF_CHOSEN,
    )
    kv_heads = c.count("num_key_value_heads", 16)
    attention = grouped_query(
        c, hidden_size, context, heads=kv_heads * router.top_k, kv_heads=kv_heads, head_dim=c.count("kv_channels", 128)
    )
    inner = attention.kv_width  # one expert turns the input into as many queries as there are keys
    attention = replace(
        attention,
        projections=(
            Extra("kv", (2 * inner, hidden_size), Part.ATTENTION),
            Extra("attn_router", (router.experts, hidden_size), Part.ROUTER),
            Extra("attn_experts_q", (router.experts, inner, hidden_size), Part.ROUTED_EXPERTS),
            Extra("attn_experts_o", (router.experts, hidden_size, inner), Part.ROUTED_EXPERTS),
            Extra("attn_experts_bias", (hidden_size,), Part.ATTENTION),
        ),
    )
    expert = FeedForward(
        c.count("ffn_hidden_size", c.raw("intermediate_size", 5632)), c.activation("activation_function", "silu")
    )
    # One bias on the output of the whole mixture: always on, so not a routed parameter.
    layers = [
        replace(layer, extra=(Extra("mixture_bias", (hidden_size,), Part.NORMS),))
        for layer in uniform_layers(c, attention, Mixture(router, expert), default=12)
    ]
    return make_spec(
        c, layers, hidden_size=hidden_size, context=context, vocab=32000, tied=True,
        unsupported=(Unsupported.ATTENTION_EXPERTS, Unsupported.MIXTURE_BIAS),
    )  # fmt: skip


FAMILY = Family(architectures=("JetMoEForCausalLM", "JetMoeForCausalLM"), model_types=("jetmoe",), read=read)
