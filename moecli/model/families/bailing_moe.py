"""Ling 2.0: DeepSeek-V3 routing over 256 small experts, half of each head rotates (BailingMoeV2ForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import (
    BODY,
    MLP,
    SHARED_EXPERTS,
    Family,
    both_layouts,
    gguf_layouts,
    names,
)
from moecli.model.families._parts import biased_sigmoid, check_router, grouped_query, layer_count, make_spec
from moecli.model.spec import FeedForward, Layer, Mixture, ModelSpec, QkNorm


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "bailing_moe")
    c.expect("score_function", "sigmoid")
    c.expect("moe_router_enable_expert_bias", True)
    c.expect("use_rmsnorm", True)
    c.expect("use_sliding_window", False)
    c.ignore("embedding_dropout", "output_dropout", "router_dtype", "max_window_layers", "mtp_loss_scaling_factor")
    hidden_size, context = c.count("hidden_size", 2048), c.count("max_position_embeddings", 32768)
    attention = grouped_query(
        c, hidden_size, context, heads=16, kv_heads=4, head_dim=128, theta=600_000.0, rotary=0.5,
        qkv_bias=c.flag("use_qkv_bias", False), output_bias=c.flag("use_bias", False),
        qk_norm=QkNorm.HEAD if c.flag("use_qk_norm", True) else QkNorm.NONE,
    )  # fmt: skip
    activation = c.activation("hidden_act", "silu")
    router = biased_sigmoid(c, experts=256, top_k=8, experts_key="num_experts")
    expert = FeedForward(c.count("moe_intermediate_size", 512), activation)
    shared_width = c.count("moe_shared_expert_intermediate_size", expert.intermediate_size)
    shared = c.optional_count("num_shared_experts", 1, least=0) or 0
    mixture = Mixture(router, expert, FeedForward(shared * shared_width, activation) if shared else None)
    check_router(c, mixture)
    dense = FeedForward(c.count("intermediate_size", 5120), activation)
    first = c.count("first_k_dense_replace", 0, least=0)
    return make_spec(
        c, [Layer(attention, mixture if i >= first else dense) for i in range(layer_count(c, 20))],
        hidden_size=hidden_size, context=context, vocab=157_184,
        extra_layers=c.count("num_nextn_predict_layers", 0, least=0),
    )  # fmt: skip


_BLOCK = "model.layers.{layer}."
FAMILY = Family(
    architectures=("BailingMoeV2ForCausalLM",),
    model_types=("bailing_moe", "bailing_moe_v2"),
    read=read,
    layouts=(
        *both_layouts(
            BODY
            | MLP
            | SHARED_EXPERTS
            | names(embedding="model.word_embeddings")
            | names(
                _BLOCK + "attention.",
                qkv="query_key_value",
                o="dense",
                q_norm="query_layernorm",
                k_norm="key_layernorm",
            )
            | names(_BLOCK + "attention.", ".bias", qkv_bias="query_key_value", o_bias="dense")
            | names(_BLOCK + "mlp.gate.", "", router_bias="expert_bias")
        ),
        *gguf_layouts(qkv="attn_qkv"),
    ),
)
