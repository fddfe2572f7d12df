"""Qwen1.5-MoE and Qwen2-MoE: biased q/k/v, raw softmax weights, one gated shared expert (Qwen2MoeForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import BODY, GROUPED_QUERY, MLP, Family, both_layouts, gguf_layouts, names
from moecli.model.families._parts import grouped_query, make_spec, sparse_steps
from moecli.model.spec import FeedForward, Layer, Mixture, ModelSpec, Router


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "qwen2_moe")
    hidden_size, context = c.count("hidden_size", 2048), c.count("max_position_embeddings", 32768)
    attention = grouped_query(c, hidden_size, context, heads=16, kv_heads=16, qkv_bias=c.flag("qkv_bias", True))
    c.alias("num_experts", "num_local_experts")
    activation = c.activation("hidden_act", "silu")
    mixture = Mixture(
        Router(
            c.count("num_experts", 60),
            c.count("num_experts_per_tok", 4),
            norm_power=1.0 if c.flag("norm_topk_prob", False) else None,
        ),
        FeedForward(c.count("moe_intermediate_size", 1408), activation),
        shared=FeedForward(c.count("shared_expert_intermediate_size", 5632), activation),
        shared_gate=True,
    )
    dense = FeedForward(c.count("intermediate_size", 5632), activation)
    layers = sparse_steps(c, attention, mixture, dense, default_layers=24)
    return make_spec(c, _windows(c, layers), hidden_size=hidden_size, context=context, vocab=151936)


def _windows(c: ConfigReader, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Layers named sliding get the window; without names, transformers slides the even ones below a limit."""
    window = c.optional_count("sliding_window", 4096, least=0)  # transformers 5 writes 0 when it is switched off
    limit = c.count("max_window_layers", 28, least=0)
    sliding = c.flag("use_sliding_window", False)
    kinds = ("full_attention", "sliding_attention")
    even = [kinds[sliding and index % 2 == 0 and index < limit] for index in range(len(layers))]
    types = c.raw("layer_types", None) or even
    if not isinstance(types, list) or len(types) != len(layers) or any(kind not in kinds for kind in types):
        raise c.fail("layer_types", f"must name {len(layers)} layers as full_attention or sliding_attention")
    if not sliding or not window:
        return layers
    return tuple(
        replace(layer, attention=replace(layer.attention, window=window)) if kind == "sliding_attention" else layer
        for layer, kind in zip(layers, types, strict=True)
    )


SHARED_EXPERT = names(
    "model.layers.{layer}.mlp.",
    shared_gate_up="shared_expert.gate_proj shared_expert.up_proj",
    shared_down="shared_expert.down_proj",
    shared_gate="shared_expert_gate",
)
FAMILY = Family(
    architectures=("Qwen2MoeForCausalLM",),
    model_types=("qwen2_moe",),
    read=read,
    layouts=(*both_layouts(BODY | GROUPED_QUERY | MLP | SHARED_EXPERT), *gguf_layouts()),
)
