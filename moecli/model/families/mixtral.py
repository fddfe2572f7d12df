"""Mixtral: eight large experts, the two best renormalised (arXiv 2401.04088)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import BODY, BUFFERS, GROUPED_QUERY, Family, Layout, fused, names, per_expert
from moecli.model.families._parts import grouped_query, uniform_layers
from moecli.model.spec import FeedForward, Mixture, ModelSpec, Router


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "mixtral")
    width, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 131_072)
    attention = grouped_query(
        c, width, context, heads=32, kv_heads=8, theta=1e6, window=c.optional_count("sliding_window")
    )
    router = Router(
        c.count("num_local_experts", c.raw("num_experts", 8)), c.count("num_experts_per_tok", 2), norm_power=1.0
    )
    expert = FeedForward(c.count("intermediate_size", 14336), c.activation("hidden_act", "silu"))
    spec = ModelSpec(
        family="mixtral",
        hidden_size=width,
        vocab_size=c.count("vocab_size", 32000),
        context_length=context,
        layers=uniform_layers(c, attention, Mixture(router, expert), default=32),
        norm_eps=c.number("rms_norm_eps", 1e-5),
        tied_embeddings=c.flag("tie_word_embeddings", False),
        stored_dtype=c.stored_dtype(),
        quantization=c.quantization(),
    )
    c.finish()
    return spec


_PUBLISHED = names("model.layers.{layer}.block_sparse_moe.", router="gate")
FAMILY = Family(
    architectures=("MixtralForCausalLM",),
    model_types=("mixtral",),
    read=read,
    layouts=(
        Layout(BODY | GROUPED_QUERY | _PUBLISHED, per_expert("block_sparse_moe.experts", "w1", "w3", "w2"), BUFFERS),
        Layout(BODY | GROUPED_QUERY | names("model.layers.{layer}.mlp.", router="gate"), fused("mlp.experts"), BUFFERS),
    ),
)
