"""Switch Transformers: an encoder and a decoder, one expert per token in every second block (arXiv 2101.03961)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import check_router, layer_count, make_spec
from moecli.model.spec import NO_ROPE, Extra, FeedForward, GroupedQuery, Layer, Mixture, ModelSpec, Part, Router
from moecli.model.unsupported import Unsupported


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "switch_transformers")
    c.expect("is_encoder_decoder", True)
    c.expect("is_gated_act", False)
    c.ignore("dropout_rate", "initializer_factor", "add_router_probs", "router_z_loss_coef", "feed_forward_proj")
    c.ignore("router_dtype", "router_ignore_padding_tokens", "relative_attention_max_distance", "expert_capacity")
    heads, head_dim = c.count("num_heads", 12), c.count("d_kv", 64)
    attention = GroupedQuery(heads, heads, head_dim, NO_ROPE, scale=1.0)
    ffn = FeedForward(c.count("d_ff", 2048), c.activation("dense_act_fn", "relu"), gated=False)
    mixture = Mixture(Router(c.count("num_experts", 8), 1, bias=c.flag("router_bias", False)), ffn)
    check_router(c, mixture)
    table = Extra("relative_bias", (c.count("relative_attention_num_buckets", 32), heads), Part.ATTENTION)

    def stack(key: str, name: str, cross: GroupedQuery | None) -> tuple[Layer, ...]:
        """The first block holds the table of positions that all blocks of the stack share."""
        count = layer_count(c, 12, key)
        sparse = c.count(f"num_sparse_{name}_layers", 3, least=0)
        step = c.count(f"{name}_sparse_step", count // sparse if sparse else 0, least=0)
        return tuple(
            Layer(
                attention,
                mixture if step == 1 or (step and index % step == 1) else ffn,
                cross=cross,
                extra=() if index else (table,),
            )
            for index in range(count)
        )

    return make_spec(
        c, stack("num_decoder_layers", "decoder", attention),
        hidden_size=c.count("d_model", 768), context=c.count("n_positions", 512), vocab=32128,
        eps_key="layer_norm_epsilon", tied=True,
        encoder=stack("num_layers", "encoder", None),
        unsupported=(Unsupported.ENCODER, Unsupported.RELATIVE_POSITIONS, Unsupported.UNGATED_EXPERTS),
        notes=("active: one token through the encoder and one through the decoder",),
    )  # fmt: skip


FAMILY = Family(
    architectures=("SwitchTransformersForConditionalGeneration",),
    model_types=("switch_transformers",),
    read=read,
)
