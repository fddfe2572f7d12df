"""Qwen3-MoE: per-head query and key norms, 128 experts, no shared expert (Qwen3MoeForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import BODY, GROUPED_QUERY, MLP, Family, both_layouts, gguf_layouts
from moecli.model.families._parts import grouped_query, make_spec, sparse_steps
from moecli.model.spec import FeedForward, Mixture, ModelSpec, QkNorm, Router


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "qwen3_moe", neutral={"use_qk_norm": (True, None)})
    c.alias("num_experts", "num_local_experts")
    hidden_size, context = c.count("hidden_size", 2048), c.count("max_position_embeddings", 32768)
    window = c.optional_count("sliding_window", 4096)
    c.ignore("max_window_layers")  # without effect in this family: all layers slide or none does
    bias = c.flag("attention_bias", False)
    attention = grouped_query(
        c, hidden_size, context, heads=32, kv_heads=4, qk_norm=QkNorm.HEAD, qkv_bias=bias, output_bias=bias,
        window=window if c.flag("use_sliding_window", False) else None,
    )  # fmt: skip
    activation = c.activation("hidden_act", "silu")
    router = Router(
        c.count("num_experts", 128),
        c.count("num_experts_per_tok", 8),
        norm_power=1.0 if c.flag("norm_topk_prob", False) else None,
    )
    mixture = Mixture(router, FeedForward(c.count("moe_intermediate_size", 768), activation))
    dense = FeedForward(c.count("intermediate_size", 6144), activation)
    layers = sparse_steps(c, attention, mixture, dense, default_layers=24)
    return make_spec(c, layers, hidden_size=hidden_size, context=context, vocab=151936)


FAMILY = Family(
    architectures=("Qwen3MoeForCausalLM",),
    model_types=("qwen3_moe",),
    read=read,
    layouts=(*both_layouts(BODY | GROUPED_QUERY | MLP), *gguf_layouts()),
)
