"""ERNIE-4.5: softmax scores, a bias for picking, two shared experts, first layer dense (Ernie4_5_MoeForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import (
    BODY,
    GROUPED_QUERY,
    MLP,
    SHARED_EXPERTS,
    Family,
    Layout,
    both_layouts,
    gguf_layouts,
    names,
)
from moecli.model.families._parts import check_router, grouped_query, layer_count, make_spec
from moecli.model.spec import FeedForward, Layer, Mixture, ModelSpec, Router

_NEUTRAL = {"moe_use_aux_free": (True, None)}  # the vendor's code reads it, transformers' does not


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "ernie4_5_moe", neutral=_NEUTRAL)
    c.alias("moe_num_experts", "num_experts")
    c.alias("moe_k", "num_experts_per_tok")
    hidden_size, context = c.count("hidden_size", 2560), c.count("max_position_embeddings", 131_072)
    attention = grouped_query(c, hidden_size, context, heads=20, kv_heads=4, theta=500_000.0, interleaved=True)
    activation = c.activation("hidden_act", "silu")
    router = Router(
        c.count("moe_num_experts", 64),
        c.count("moe_k", 6),
        norm_power=1.0,
        norm_floor=c.number("moe_norm_min", 1e-12),
        correction_bias=True,
    )
    expert = FeedForward(c.count("moe_intermediate_size", 1536), activation)
    shared = c.optional_count("moe_num_shared_experts", 2, least=0) or 0
    mixture = Mixture(router, expert, FeedForward(shared * expert.intermediate_size, activation) if shared else None)
    check_router(c, mixture)
    dense = FeedForward(c.count("intermediate_size", 12288), activation)
    count = layer_count(c, 28)
    first, every = c.count("moe_layer_start_index", 1, least=0), c.count("moe_layer_interval", 1)
    last = c.count("moe_layer_end_index", -1, least=-1)
    last = count - 1 if last == -1 else last
    sparse = [first <= index <= last and (index + 1) % every == 0 for index in range(count)]
    return make_spec(
        c, [Layer(attention, mixture if flag else dense) for flag in sparse],
        hidden_size=hidden_size, context=context, vocab=103_424, eps=1e-5, tied=True,
    )  # fmt: skip


def _layouts() -> tuple[Layout, ...]:
    """The correction bias has another name in each of the two."""
    published, fused = both_layouts(BODY | GROUPED_QUERY | MLP | SHARED_EXPERTS)
    prediction = r"model\.mtp_\w+\..+"  # of several tokens
    return tuple(
        Layout(
            {**layout.dense, **names(prefix, "", router_bias="moe_statics.e_score_correction_bias")},
            layout.experts,
            (*layout.ignored, prediction),
        )
        for layout, prefix in ((published, "model.layers.{layer}.mlp."), (fused, "model.layers.{layer}.mlp.gate."))
    )


FAMILY = Family(
    architectures=("Ernie4_5_MoeForCausalLM",),
    model_types=("ernie4_5_moe",),
    read=read,
    layouts=(*_layouts(), *gguf_layouts()),
)
