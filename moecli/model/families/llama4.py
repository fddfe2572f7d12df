"""Llama 4 Scout and Maverick: one routed expert beside a shared one, attention in chunks (Llama4ForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import (
    BODY,
    BUFFERS,
    GROUPED_QUERY,
    Family,
    Layout,
    fused,
    gguf_layouts,
    names,
    per_expert,
)
from moecli.model.families._parts import check_router, grouped_query, language_part, layer_count, make_spec
from moecli.model.spec import (
    NO_ROPE,
    FeedForward,
    GroupedQuery,
    Layer,
    Mixture,
    ModelSpec,
    QkNorm,
    QueryGrowth,
    Router,
    Scoring,
)

_FULL, _CHUNKED = _KINDS = ("full_attention", "chunked_attention")


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = language_part(config, "llama4")
    c.ignore("for_llm_compressor", "cache_implementation")
    hidden_size, context = c.count("hidden_size", 5120), c.count("max_position_embeddings", 131_072)
    count = layer_count(c, 48)
    activation = c.activation("hidden_act", "silu")
    router = Router(c.count("num_local_experts", 16), c.count("num_experts_per_tok", 1), Scoring.SIGMOID_INPUT)
    expert = FeedForward(c.count("intermediate_size", 8192), activation)
    mixture = Mixture(router, expert, shared=expert)
    check_router(c, mixture)
    dense = FeedForward(c.count("intermediate_size_mlp", 16384), activation)
    every = c.count("interleave_moe_layer_step", 1)
    silent = c.raw("moe_layers", None) is None
    sparse = frozenset(range(every - 1, count, every)) if silent else c.indices("moe_layers", count)
    return make_spec(
        c,
        [
            Layer(attention, mixture if index in sparse else dense)
            for index, attention in enumerate(_attentions(c, hidden_size, context, count))
        ],
        hidden_size=hidden_size, context=context, vocab=202_048, eps=1e-5,
        notes=("the text decoder alone: the vision tower is not counted",) if "vision_config" in config else (),
    )  # fmt: skip


def _attentions(c: ConfigReader, hidden_size: int, context: int, count: int) -> list[GroupedQuery]:
    """Layers that rotate, usually in chunks, and layers without positions, whose queries grow with the text."""
    bias = c.flag("attention_bias", False)
    usual = grouped_query(
        c, hidden_size, context, heads=40, kv_heads=8, head_dim=128, theta=500_000.0, interleaved=True,
        qkv_bias=bias, output_bias=bias,
    )  # fmt: skip
    rotates = replace(usual, qk_norm=QkNorm.UNWEIGHTED if c.flag("use_qk_norm", True) else QkNorm.NONE)
    growth = QueryGrowth(c.number("attn_scale", 0.1, positive=False), c.number("floor_scale", 8192), offset=1)
    grows = c.flag("attn_temperature_tuning", True)
    still = replace(usual, rope=NO_ROPE, query_growth=growth if grows else None)
    interval, key = c.count("no_rope_layer_interval", 4), "no_rope_layers"  # which says 1 where layers do rotate
    rope = [(i + 1) % interval for i in range(count)]
    if c.raw(key, None):
        rope = c.choices(key, count, (0, 1))
    kinds = c.choices("layer_types", count, _KINDS, [_CHUNKED if each else _FULL for each in rope])
    chunk = c.optional_count("attention_chunk_size", 8192)
    if chunk is None and _CHUNKED in kinds:
        raise c.fail("attention_chunk_size", "is missing")
    return [
        replace(rotates if rope[i] else still, window=chunk if kind == _CHUNKED else None, chunked=kind == _CHUNKED)
        for i, kind in enumerate(kinds)
    ]


_LAYER = "model.layers.{layer}."
_DENSE = (
    BODY
    | GROUPED_QUERY
    | names(
        _LAYER + "feed_forward.", gate_up="gate_proj up_proj", down="down_proj", router="router",
        shared_gate_up="shared_expert.gate_proj shared_expert.up_proj", shared_down="shared_expert.down_proj",
    )
)  # fmt: skip
FAMILY = Family(
    architectures=("Llama4ForConditionalGeneration", "Llama4ForCausalLM"),
    model_types=("llama4", "llama4_text"),
    read=read,
    layouts=(
        Layout(_DENSE, fused("feed_forward.experts", transposed=True), BUFFERS),
        Layout(_DENSE, per_expert("feed_forward.experts", "gate_proj", "up_proj", "down_proj"), BUFFERS),
        *gguf_layouts(),
    ),
)
