"""DeepSeek-V3.2: V3 with an indexer that picks the tokens attention looks at (DeepseekV32ForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import biased_sigmoid, make_spec, multi_head_latent
from moecli.model.families.deepseek_v2 import dense_then_sparse
from moecli.model.spec import Extra, Layer, ModelSpec, Part
from moecli.model.unsupported import Unsupported


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "deepseek_v32")
    context = c.count("max_position_embeddings", 163_840)
    router = biased_sigmoid(c, experts=256, top_k=8, scaling=2.5)
    layers = dense_then_sparse(
        c, multi_head_latent(c, context, heads=128), router,
        default_layers=61, default_dense=3, default_widths=(18432, 2048, 1),
    )  # fmt: skip
    return indexed(c, layers, index_heads=64, hidden_size=7168, context=context, vocab=129_280)


def indexed(
    c: ConfigReader, layers: tuple[Layer, ...], *, index_heads: int, hidden_size: int, context: int, vocab: int
) -> ModelSpec:
    """The spec of V3 blocks with an indexer in each: few heads, one key per token, scores summed over the heads."""
    c.expect("scoring_func", "sigmoid")
    c.expect("topk_method", "noaux_tc")
    c.expect("mlp_bias", False)
    c.ignore("index_topk", "indexer_rope_interleave", "layer_types")  # how many tokens, how it rotates; all alike
    if c.raw("indexer_types", None) is None:  # then it follows from these
        c.expect("index_topk_freq", 1, None)
        c.expect("index_topk_pattern", None)
    c.ignore("index_topk_freq", "index_topk_pattern", "index_skip_topk_offset")
    kinds = c.choices("indexer_types", len(layers), ("full", "shared"), ["full"] * len(layers))
    hidden_size, heads, dim = (
        c.count("hidden_size", hidden_size),
        c.count("index_n_heads", index_heads),
        c.count("index_head_dim", 128),
    )
    indexer = (
        Extra("index_q", (heads * dim, c.count("q_lora_rank", 1536)), Part.ATTENTION),
        Extra("index_k", (dim, hidden_size), Part.ATTENTION),
        Extra("index_weights", (heads, hidden_size), Part.ATTENTION),
        Extra("index_k_norm", (dim,), Part.NORMS),
        Extra("index_k_norm_bias", (dim,), Part.NORMS),
    )
    return make_spec(
        c,
        [
            replace(layer, extra=indexer, cache_extra=dim) if kind == "full" else layer  # shared: as the layer before
            for layer, kind in zip(layers, kinds, strict=True)
        ],
        hidden_size=hidden_size, context=context, vocab=vocab,
        extra_layers=c.count("num_nextn_predict_layers", c.raw("num_mtp_layers", 1), least=0),
        unsupported=(Unsupported.INDEXER,),
    )  # fmt: skip


FAMILY = Family(architectures=("DeepseekV32ForCausalLM",), model_types=("deepseek_v32",), read=read)
