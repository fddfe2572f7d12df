"""Mistral 7B and its dense successors: Llama with a sliding window, and the peer of Mixtral (MistralForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import BODY, BUFFERS, GROUPED_QUERY, MLP, Family, Layout
from moecli.model.families._parts import grouped_query, make_spec, uniform_layers
from moecli.model.spec import FeedForward, ModelSpec


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "mistral")
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 131_072)
    window = c.optional_count("sliding_window", 4096)
    attention = grouped_query(c, hidden_size, context, heads=32, kv_heads=8, window=window)
    ffn = FeedForward(c.count("intermediate_size", 14336), c.activation("hidden_act", "silu"))
    layers = uniform_layers(c, attention, ffn, default=32)
    return make_spec(c, layers, hidden_size=hidden_size, context=context, vocab=32000)


FAMILY = Family(
    architectures=("MistralForCausalLM",),
    model_types=("mistral",),
    read=read,
    layouts=(Layout(BODY | GROUPED_QUERY | MLP, ignored=BUFFERS),),
)
