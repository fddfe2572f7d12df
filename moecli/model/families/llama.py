"""Llama 1 to 3: dense, so that a mixture can be compared with its peer on the same machine (LlamaForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import BODY, BUFFERS, GROUPED_QUERY, MLP, Family, Layout, gguf_layouts
from moecli.model.families._parts import grouped_query, make_spec, uniform_layers
from moecli.model.spec import FeedForward, ModelSpec


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "llama")
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 2048)
    bias = c.flag("attention_bias", False)
    attention = grouped_query(c, hidden_size, context, heads=32, qkv_bias=bias, output_bias=bias)
    ffn = FeedForward(c.count("intermediate_size", 11008), c.activation("hidden_act", "silu"))
    layers = uniform_layers(c, attention, ffn, default=32)
    return make_spec(c, layers, hidden_size=hidden_size, context=context, vocab=32000)


FAMILY = Family(
    architectures=("LlamaForCausalLM",),
    model_types=("llama",),
    read=read,
    layouts=(Layout(BODY | GROUPED_QUERY | MLP, ignored=BUFFERS), *gguf_layouts()),
)
