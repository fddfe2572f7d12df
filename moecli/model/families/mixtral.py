"""Mixtral: eight large experts, the two best renormalised (arXiv 2401.04088)."""

from __future__ import annotations

from collections.abc import Mapping
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
from moecli.model.families._parts import grouped_query, make_spec, uniform_layers
from moecli.model.spec import FeedForward, Mixture, ModelSpec, Router


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "mixtral")
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 131_072)
    attention = grouped_query(
        c, hidden_size, context, heads=32, kv_heads=8, theta=1e6, window=c.optional_count("sliding_window")
    )
    c.alias("num_local_experts", "num_experts")
    router = Router(c.count("num_local_experts", 8), c.count("num_experts_per_tok", 2), norm_power=1.0)
    expert = FeedForward(c.count("intermediate_size", 14336), c.activation("hidden_act", "silu"))
    return make_spec(
        c, uniform_layers(c, attention, Mixture(router, expert), default=32),
        hidden_size=hidden_size, context=context, vocab=32000, eps=1e-5,
    )  # fmt: skip


_PUBLISHED = names("model.layers.{layer}.block_sparse_moe.", router="gate")
FAMILY = Family(
    architectures=("MixtralForCausalLM",),
    model_types=("mixtral",),
    read=read,
    layouts=(
        Layout(BODY | GROUPED_QUERY | _PUBLISHED, per_expert("block_sparse_moe.experts", "w1", "w3", "w2"), BUFFERS),
        Layout(BODY | GROUPED_QUERY | names("model.layers.{layer}.mlp.", router="gate"), fused("mlp.experts"), BUFFERS),
        *gguf_layouts(),
    ),
)
