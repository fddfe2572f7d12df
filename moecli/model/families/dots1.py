"""dots.llm1: DeepSeek-V3 routing, Qwen3's attention, the last layers may have a window (Dots1ForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import (
    BODY,
    CORRECTION_BIAS,
    GROUPED_QUERY,
    MLP,
    SHARED_EXPERTS,
    Family,
    both_layouts,
    gguf_layouts,
)
from moecli.model.families._parts import biased_sigmoid, grouped_query, make_spec
from moecli.model.families.deepseek_v2 import dense_then_sparse
from moecli.model.spec import Layer, ModelSpec, QkNorm

# The vendor's code reads them; transformers' is written for these values.
_NEUTRAL = {"scoring_func": ("sigmoid", "noaux_tc", None), "topk_method": ("noaux_tc", None)}


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "dots1", neutral=_NEUTRAL)
    c.alias("n_routed_experts", "num_local_experts")
    hidden_size, context = c.count("hidden_size", 4608), c.count("max_position_embeddings", 2048)
    bias = c.flag("attention_bias", False)
    attention = grouped_query(c, hidden_size, context, heads=32, qk_norm=QkNorm.HEAD, qkv_bias=bias, output_bias=bias)
    layers = dense_then_sparse(
        c,
        attention,
        biased_sigmoid(c, normalise=False),
        default_layers=62,
        default_dense=0,
        default_widths=(10944, 1408, 0),
    )
    return make_spec(c, _windows(c, layers), hidden_size=hidden_size, context=context, vocab=152_064)


def _windows(c: ConfigReader, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Layers named sliding get the window; without names, those from max_window_layers on."""
    window, first = c.optional_count("sliding_window", 4096), c.count("max_window_layers", 62, least=0)
    full, sliding = "full_attention", "sliding_attention"
    usual = [sliding if window is not None and index >= first else full for index in range(len(layers))]
    kinds = c.choices("layer_types", len(layers), (full, sliding), usual)
    if window is None and sliding in kinds:
        raise c.fail("layer_types", "names windows, and sliding_window says none")
    return tuple(
        replace(layer, attention=replace(layer.attention, window=window)) if kind == sliding else layer
        for layer, kind in zip(layers, kinds, strict=True)
    )


FAMILY = Family(
    architectures=("Dots1ForCausalLM",),
    model_types=("dots1",),
    read=read,
    layouts=(*both_layouts(BODY | GROUPED_QUERY | MLP | SHARED_EXPERTS | CORRECTION_BIAS), *gguf_layouts()),
)
