"""OLMoE: 64 small experts, 8 active, query and key norms over the full width (arXiv 2409.02060)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import BODY, GROUPED_QUERY, MLP, Family, both_layouts, gguf_layouts
from moecli.model.families._parts import grouped_query, make_spec, uniform_layers
from moecli.model.spec import FeedForward, Mixture, ModelSpec, QkNorm, Router


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "olmoe")
    hidden_size, context = c.count("hidden_size", 2048), c.count("max_position_embeddings", 4096)
    bias = c.flag("attention_bias", False)
    attention = grouped_query(
        c, hidden_size, context, heads=16, qk_norm=QkNorm.FULL, qkv_bias=bias, output_bias=bias,
        clip=c.optional_number("clip_qkv"),
    )  # fmt: skip
    c.alias("num_experts", "num_local_experts")
    router = Router(
        c.count("num_experts", 64),
        c.count("num_experts_per_tok", 8),
        norm_power=1.0 if c.flag("norm_topk_prob", False) else None,
    )
    expert = FeedForward(c.count("intermediate_size", 2048), c.activation("hidden_act", "silu"))
    return make_spec(
        c, uniform_layers(c, attention, Mixture(router, expert), default=16),
        hidden_size=hidden_size, context=context, vocab=50304, eps=1e-5,
    )  # fmt: skip


FAMILY = Family(
    architectures=("OlmoeForCausalLM",),
    model_types=("olmoe",),
    read=read,
    layouts=(*both_layouts(BODY | GROUPED_QUERY | MLP), *gguf_layouts()),
)
