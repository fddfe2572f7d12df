"""Gemma 4 26B-A4B: a dense block beside the mixture, five windows to one full layer (google/gemma-4-26B-A4B)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import check_router, language_part, layer_count, make_spec
from moecli.model.spec import Extra, FeedForward, GroupedQuery, Layer, Mixture, ModelSpec, Part, QkNorm, Rope, Router
from moecli.model.unsupported import Unsupported

_KINDS = ("sliding_attention", "full_attention")


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = language_part(config, "gemma4")
    for key, only in (("enable_moe_block", True), ("use_double_wide_mlp", False), ("attention_bias", False)):
        c.expect(key, only)
    c.expect("hidden_size_per_layer_input", 0)
    c.expect("num_kv_shared_layers", 0)
    c.ignore("vocab_size_per_layer_input", "use_bidirectional_attention", "final_logit_softcapping")
    hidden_size, context = c.count("hidden_size", 2304), c.count("max_position_embeddings", 131_072)
    sliding, full = _attentions(c, hidden_size)
    activation = c.activation("hidden_activation", "gelu_pytorch_tanh")
    mixture = Mixture(
        Router(c.count("num_experts"), c.count("top_k_experts"), norm_power=1.0),
        FeedForward(c.count("moe_intermediate_size"), activation),
    )
    check_router(c, mixture)
    extra = (
        Extra("router_scale", (hidden_size,), Part.ROUTER),
        Extra("router_expert_scale", (mixture.router.experts,), Part.ROUTER),
        Extra("post_parallel_norm", (hidden_size,), Part.NORMS),
        Extra("post_mixture_norm", (hidden_size,), Part.NORMS),
        Extra("layer_scale", (1,), Part.OTHER),
    )
    dense = FeedForward(c.count("intermediate_size", 9216), activation)
    count = layer_count(c, 30)
    kinds = c.choices("layer_types", count, _KINDS, [_KINDS[(i + 1) % 6 == 0] for i in range(count)])
    return make_spec(
        c,
        [Layer(full if kind == "full_attention" else sliding, mixture, parallel=dense, extra=extra) for kind in kinds],
        hidden_size=hidden_size, context=context, vocab=262_144,
        tied=True, branch_norms=True, embedding_multiplier=hidden_size**0.5,
        unsupported=(Unsupported.DENSE_BESIDE_MIXTURE, Unsupported.KEYS_AS_VALUES, Unsupported.LAYER_SCALE),
        notes=("the text model alone: the vision tower is not counted",) if "vision_config" in config else (),
    )  # fmt: skip


def _attentions(c: ConfigReader, hidden_size: int) -> tuple[GroupedQuery, GroupedQuery]:
    """Windows, and full attention with wider heads whose values are the keys before norm and rotation."""
    c.ignore("rope_parameters")  # one entry per kind: 10,000 over the whole head, and a million over a quarter of it
    heads, kv_heads, head_dim = (
        c.count("num_attention_heads", 8), c.count("num_key_value_heads", 4), c.count("head_dim", 256)
    )  # fmt: skip
    sliding = GroupedQuery(
        heads, kv_heads, head_dim, Rope(10_000.0, head_dim), scale=1.0, qk_norm=QkNorm.HEAD,
        window=c.count("sliding_window", 512),
    )  # fmt: skip
    wide = c.optional_count("global_head_dim") or head_dim
    rope = Rope(1e6, wide // 4)
    if not c.flag("attention_k_eq_v", False):
        c.ignore("num_global_key_value_heads")
        return sliding, replace(sliding, head_dim=wide, rope=rope, window=None)
    kv_heads = c.optional_count("num_global_key_value_heads") or kv_heads
    projections = (
        Extra("q", (heads * wide, hidden_size), Part.ATTENTION),
        Extra("k", (kv_heads * wide, hidden_size), Part.ATTENTION),
        Extra("q_norm", (wide,), Part.NORMS),
        Extra("k_norm", (wide,), Part.NORMS),
        Extra("o", (hidden_size, heads * wide), Part.ATTENTION),
    )
    return sliding, replace(sliding, kv_heads=kv_heads, head_dim=wide, rope=rope, window=None, projections=projections)


FAMILY = Family(
    architectures=("Gemma4ForConditionalGeneration", "Gemma4ForCausalLM"),
    model_types=("gemma4", "gemma4_text"),
    read=read,
)
