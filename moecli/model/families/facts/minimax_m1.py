"""MiniMax-M1: seven lightning-attention layers to one of softmax attention (arXiv 2506.13585)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import check_router, grouped_query, layer_count, make_spec
from moecli.model.spec import (
    NO_ATTENTION,
    Extra,
    FeedForward,
    Layer,
    Mixture,
    ModelSpec,
    Part,
    Recurrent,
    RecurrentKind,
    Router,
)
from moecli.model.unsupported import Unsupported


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "minimax_m1")
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 131_072)
    head_dim = c.count("head_dim", 128)
    attention = grouped_query(
        c, hidden_size, context, heads=32, kv_heads=8, theta=1e6, rotary=c.count("rotary_dim", head_dim) / head_dim,
        window=c.optional_count("sliding_window"),
    )  # fmt: skip
    for branch in ("full_attention", "linear_attention", "mlp"):
        c.ignore(f"layernorm_{branch}_alpha", f"layernorm_{branch}_beta")  # scale the two sides of the residual
    c.ignore("postnorm", "shared_moe_mode")
    c.expect("shared_intermediate_size", 0)
    router = Router(c.count("num_local_experts", 8), c.count("num_experts_per_tok", 2), norm_power=1.0)
    mixture = Mixture(router, FeedForward(c.count("intermediate_size", 14336), c.activation("hidden_act", "silu")))
    check_router(c, mixture)
    softmax = Layer(attention, mixture)
    linear = Layer(NO_ATTENTION, mixture, _lightning(hidden_size, attention.heads, head_dim))
    kinds = c.choices("attn_type_list", layer_count(c, 32), (0, 1))
    return make_spec(
        c, [softmax if kind else linear for kind in kinds],
        hidden_size=hidden_size, context=context, vocab=32000, eps=1e-5,
        unsupported=(Unsupported.LINEAR_ATTENTION, Unsupported.RESIDUAL_NORMS),
    )  # fmt: skip


def _lightning(hidden_size: int, heads: int, head_dim: int) -> Recurrent:
    inner = heads * head_dim
    tensors = (
        Extra("linear_qkv", (3 * inner, hidden_size), Part.MIXER_OTHER),
        Extra("linear_gate", (inner, hidden_size), Part.MIXER_OTHER),
        Extra("linear_norm", (inner,), Part.MIXER_OTHER),
        Extra("linear_o", (hidden_size, inner), Part.MIXER_OTHER),
    )
    return Recurrent(RecurrentKind.LIGHTNING, tensors, state=inner * head_dim)


FAMILY = Family(architectures=("MiniMaxM1ForCausalLM",), model_types=("minimax_m1",), read=read)
