"""MiniMax-M2 to M2.7: full-width query and key norms, sigmoid routing over 256 experts (MiniMaxM2ForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import biased_sigmoid, grouped_query, layer_count, make_spec, uniform_layers
from moecli.model.spec import FeedForward, Mixture, ModelSpec, QkNorm
from moecli.model.unsupported import Unsupported


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "minimax_m2")
    hidden_size, context = c.count("hidden_size", 3072), c.count("max_position_embeddings", 196_608)
    c.expect("use_qk_norm", True)
    c.expect("qk_norm_type", "per_layer")
    c.expect("use_routing_bias", True)
    c.expect("scoring_func", "sigmoid")
    c.expect("shared_intermediate_size", 0, None)
    c.choices("attn_type_list", layer_count(c, 62), (1,), ())
    attention = grouped_query(
        c, hidden_size, context, heads=48, kv_heads=8, head_dim=128, theta=5e6, qk_norm=QkNorm.FULL,
        rotary=c.count("rotary_dim", 64) / c.count("head_dim", 128),
        window=c.optional_count("sliding_window"),
    )  # fmt: skip
    router = biased_sigmoid(c, experts=256, top_k=8, experts_key="num_local_experts")
    expert = FeedForward(c.count("intermediate_size", 1536), c.activation("hidden_act", "silu"))
    modules = c.count("num_mtp_modules", 0, least=0) * c.count("mtp_transformer_layers", 1, least=0)
    return make_spec(
        c, uniform_layers(c, attention, Mixture(router, expert), default=62),
        hidden_size=hidden_size, context=context, vocab=200_064,
        extra_layers=modules if c.flag("use_mtp", False) else 0,
        unsupported=(Unsupported.UNCOMPARED,),
    )  # fmt: skip


FAMILY = Family(architectures=("MiniMaxM2ForCausalLM",), model_types=("minimax_m2",), read=read)
