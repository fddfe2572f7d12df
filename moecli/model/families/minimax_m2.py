"""MiniMax-M2 to M2.7: full-width query and key norms, sigmoid routing over 256 experts (MiniMaxM2ForCausalLM)."""

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
from moecli.model.families._parts import grouped_query, layer_count, make_spec, uniform_layers
from moecli.model.spec import FeedForward, Mixture, ModelSpec, QkNorm, Router, Scoring

# The vendor's code reads them; transformers' is written for these values.
_NEUTRAL = {
    "use_qk_norm": (True, None),
    "qk_norm_type": ("per_layer", None),
    "use_routing_bias": (True, None),
    "scoring_func": ("sigmoid", None),
    "norm_topk_prob": (True, None),
    "routed_scaling_factor": (1.0, None),
    "shared_intermediate_size": (0, None),
}


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "minimax_m2", neutral=_NEUTRAL)
    c.alias("num_local_experts", "num_experts")
    hidden_size, context = c.count("hidden_size", 3072), c.count("max_position_embeddings", 196_608)
    c.choices("attn_type_list", layer_count(c, 62), (1,), ())
    head_dim = c.count("head_dim", 128)
    attention = grouped_query(
        c, hidden_size, context, heads=48, kv_heads=8, head_dim=128, theta=5e6, qk_norm=QkNorm.FULL,
        rotary=(c.optional_count("rotary_dim") or head_dim) / head_dim,
    )  # fmt: skip
    router = Router(
        c.count("num_local_experts", 256),
        c.count("num_experts_per_tok", 8),
        Scoring.SIGMOID,
        norm_power=1.0,
        correction_bias=True,
    )
    expert = FeedForward(c.count("intermediate_size", 1536), c.activation("hidden_act", "silu"))
    modules = c.count("num_mtp_modules", 0, least=0) * c.count("mtp_transformer_layers", 1, least=0)
    return make_spec(
        c, uniform_layers(c, attention, Mixture(router, expert), default=62),
        hidden_size=hidden_size, context=context, vocab=200_064,
        extra_layers=modules if c.flag("use_mtp", False) else 0,
    )  # fmt: skip


_BLOCK, _FUSED = "model.layers.{layer}.block_sparse_moe.", "model.layers.{layer}.mlp."
FAMILY = Family(
    architectures=("MiniMaxM2ForCausalLM",),
    model_types=("minimax_m2",),
    read=read,
    layouts=(
        Layout(
            BODY
            | GROUPED_QUERY
            | names(_BLOCK, router="gate")
            | names(_BLOCK, "", router_bias="e_score_correction_bias"),
            per_expert("block_sparse_moe.experts", "w1", "w3", "w2"),
            BUFFERS,
        ),
        Layout(
            BODY
            | GROUPED_QUERY
            | names(_FUSED, router="gate")
            | names(_FUSED, "", router_bias="e_score_correction_bias"),
            fused("mlp.experts"),
            BUFFERS,
        ),
        *gguf_layouts(),
    ),
)
