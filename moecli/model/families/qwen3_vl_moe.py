"""The text model of Qwen3-VL-MoE: Qwen3-MoE with weights always normalised and experts stored [in, out]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._layout import (
    BODY,
    BUFFERS,
    GROUPED_QUERY,
    MLP,
    Family,
    Layout,
    both_layouts,
    fused,
    gguf_layouts,
)
from moecli.model.families._parts import grouped_query, language_part, make_spec, sparse_steps
from moecli.model.spec import FeedForward, Mixture, ModelSpec, QkNorm, Router


def read(config: Mapping[str, Any]) -> ModelSpec:
    """In a text, the positions on all axes of its rope are the same, so that it is the usual one."""
    c = language_part(config, "qwen3_vl_moe")
    c.alias("num_experts", "num_local_experts")
    c.ignore("sliding_window", "use_sliding_window", "max_window_layers", "norm_topk_prob")  # overruled by its code
    hidden_size, context = c.count("hidden_size", 2048), c.count("max_position_embeddings", 128_000)
    bias = c.flag("attention_bias", False)
    attention = grouped_query(
        c, hidden_size, context, heads=16, kv_heads=16, theta=500_000.0, qk_norm=QkNorm.HEAD,
        qkv_bias=bias, output_bias=bias,
    )  # fmt: skip
    activation = c.activation("hidden_act", "silu")
    router = Router(c.count("num_experts", 60), c.count("num_experts_per_tok", 4), norm_power=1.0)
    mixture = Mixture(router, FeedForward(c.count("moe_intermediate_size", 1408), activation))
    dense = FeedForward(c.count("intermediate_size", 5632), activation)
    layers = sparse_steps(c, attention, mixture, dense, default_layers=24)
    seen = ("the text model alone: the vision tower is not counted",) if "vision_config" in config else ()
    return make_spec(c, layers, hidden_size=hidden_size, context=context, vocab=151_936, notes=seen)


_DENSE = BODY | GROUPED_QUERY | MLP
FAMILY = Family(
    architectures=("Qwen3VLMoeForConditionalGeneration",),
    model_types=("qwen3_vl_moe", "qwen3_vl_moe_text"),
    read=read,
    layouts=(
        *both_layouts(_DENSE),
        Layout(_DENSE, fused("mlp.experts", transposed=True), BUFFERS),
        *gguf_layouts(),
    ),
)
