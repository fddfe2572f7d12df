"""MiniMax-M3: block-sparse attention with an indexer from the fourth layer on, 128 experts (MiniMaxM3ForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import (
    biased_sigmoid,
    check_router,
    grouped_query,
    language_part,
    layer_count,
    make_spec,
)
from moecli.model.spec import Extra, FeedForward, Layer, Mixture, ModelSpec, Part, QkNorm
from moecli.model.unsupported import Unsupported


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = language_part(config, "minimax_m3")
    for key in ("use_qk_norm", "use_routing_bias", "use_gemma_norm"):
        c.expect(key, True)
    c.expect("qk_norm_type", "per_head")
    c.expect("scoring_func", "sigmoid")
    c.expect("attention_output_gate", False)
    c.expect("swiglu_alpha", 1.702)
    c.expect("swiglu_limit", 7.0)
    c.ignore("first_k_dense_replace", "num_nextn_predict_layers")  # mirrors
    hidden_size, context = c.count("hidden_size", 6144), c.count("max_position_embeddings", 524_288)
    attention = grouped_query(
        c, hidden_size, context, heads=64, kv_heads=4, head_dim=128, theta=5e6, qk_norm=QkNorm.HEAD,
        rotary=c.count("rotary_dim", 64) / c.count("head_dim", 128),
    )  # fmt: skip
    activation = c.activation("hidden_act", "swigluoai")
    router = biased_sigmoid(c, experts=128, top_k=4, scaling=2.0, experts_key="num_local_experts")
    expert = FeedForward(c.count("moe_intermediate_size", c.count("intermediate_size", 3072)), activation)
    shared = c.count("n_shared_experts", 1) * c.count("shared_intermediate_size", 3072)
    mixture = Mixture(router, expert, FeedForward(shared, activation))
    check_router(c, mixture)
    dense = FeedForward(c.count("dense_intermediate_size", 12288), activation)
    count = layer_count(c, 60)
    sparse = c.choices("moe_layer_freq", count, (0, 1), [1] * count)
    indexed, indexer = _indexer(c, hidden_size, count)
    layers = [
        Layer(
            attention,
            mixture if sparse[index] else dense,
            extra=indexer if indexed[index] else (),
            cache_extra=indexer[1].shape[0] if indexed[index] else 0,
        )
        for index in range(count)
    ]
    return make_spec(
        c, layers, hidden_size=hidden_size, context=context, vocab=200_064,
        extra_layers=c.count("num_mtp_modules", 0, least=0),
        unsupported=(Unsupported.INDEXER,),
        notes=("structure inferred from config.json",),
    )  # fmt: skip


def _indexer(c: ConfigReader, hidden_size: int, layers: int) -> tuple[list[int], tuple[Extra, ...]]:
    """Which layers have one, and its tensors: a few query heads, and one key per token that the cache keeps."""
    part = c.nested("sparse_attention_config")
    if part is None:
        return [0] * layers, (
            Extra("index_q", (0, hidden_size), Part.ATTENTION),
            Extra("index_k", (0, hidden_size), Part.ATTENTION),
        )
    part.expect("use_sparse_attention", True)
    part.expect("sparse_score_type", "max")
    part.ignore("sparse_block_size", "sparse_init_block", "sparse_local_block", "sparse_topk_blocks")
    where = part.choices("sparse_attention_freq", layers, (0, 1))
    part.expect("sparse_disable_index_value", where)  # else there would be values as well
    heads, dim = part.count("sparse_num_index_heads", 4), part.count("sparse_index_dim", 128)
    part.finish(irrelevant=())
    return where, (
        Extra("index_q", (heads * dim, hidden_size), Part.ATTENTION),
        Extra("index_k", (dim, hidden_size), Part.ATTENTION),
        Extra("index_q_norm", (dim,), Part.NORMS),
        Extra("index_k_norm", (dim,), Part.NORMS),
    )


FAMILY = Family(
    architectures=("MiniMaxM3ForCausalLM", "MiniMaxM3SparseForConditionalGeneration"),
    model_types=("minimax_m3", "minimax_m3_vl", "minimax_m3_vl_text"),
    read=read,
)
