"""Granite 3 MoE: forty tiny experts in fused stacks, four multipliers, tied tables (GraniteMoeForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import (
    BODY,
    BUFFERS,
    GROUPED_QUERY,
    ExpertNames,
    Family,
    Layout,
    NamedSlice,
    fused,
    gguf_layouts,
    names,
)
from moecli.model.families._parts import grouped_query, make_spec, uniform_layers
from moecli.model.spec import FeedForward, Mixture, ModelSpec, Router, Scoring

_NEUTRAL = {"position_embedding_type": ("rope", None)}


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "granitemoe", neutral=_NEUTRAL)
    c.alias("num_local_experts", "num_experts")
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 2048)
    bias = c.flag("attention_bias", False)
    attention = grouped_query(
        c, hidden_size, context, heads=32, qkv_bias=bias, output_bias=bias, scale=c.number("attention_multiplier", 1.0)
    )
    router = Router(c.count("num_local_experts", 8), c.count("num_experts_per_tok", 2), Scoring.SOFTMAX_OF_CHOSEN)
    expert = FeedForward(c.count("intermediate_size", 11008), c.activation("hidden_act", "silu"))
    return make_spec(
        c, uniform_layers(c, attention, Mixture(router, expert), default=32),
        hidden_size=hidden_size, context=context, vocab=32000,
        embedding_multiplier=c.number("embedding_multiplier", 1.0),
        logit_multiplier=1 / c.number("logits_scaling", 1.0),
        residual_multiplier=c.number("residual_multiplier", 1.0),
    )  # fmt: skip


_BLOCK = "model.layers.{layer}.block_sparse_moe."
FAMILY = Family(
    architectures=("GraniteMoeForCausalLM",),
    model_types=("granitemoe",),
    read=read,
    layouts=(
        Layout(
            BODY | GROUPED_QUERY | names(_BLOCK, router="router.layer"),
            ExpertNames(
                NamedSlice(_BLOCK + "input_linear.weight", stacked=True, half=0),
                NamedSlice(_BLOCK + "input_linear.weight", stacked=True, half=1),
                NamedSlice(_BLOCK + "output_linear.weight", stacked=True),
            ),
            BUFFERS,
        ),
        Layout(BODY | GROUPED_QUERY | names(_BLOCK, router="router"), fused("block_sparse_moe.experts"), BUFFERS),
        *gguf_layouts(),
    ),
)
