"""DeepSeek-V3, R1 and Kimi-K2: V2's blocks with a sigmoid router and a correction bias (arXiv 2412.19437)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import (
    BODY,
    CORRECTION_BIAS,
    MLP,
    MULTI_HEAD_LATENT,
    SHARED_EXPERTS,
    Family,
    both_layouts,
    gguf_layouts,
)
from moecli.model.families._parts import make_spec, multi_head_latent
from moecli.model.families.deepseek_v2 import dense_then_sparse
from moecli.model.spec import GroupScore, ModelSpec, Router, Scoring

# The vendor's code reads them; transformers' is written for these values.
_NEUTRAL = {"scoring_func": ("sigmoid", None), "topk_method": ("noaux_tc", None)}


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "deepseek_v3", neutral=_NEUTRAL)
    c.alias("n_routed_experts", "num_local_experts", "num_experts")
    c.alias("num_nextn_predict_layers", "num_mtp_layers")
    context = c.count("max_position_embeddings", 4096)
    attention = multi_head_latent(c, context, heads=128)
    layers = dense_then_sparse(
        c, attention, router(c), default_layers=61, default_dense=3, default_widths=(18432, 2048, 1)
    )
    return make_spec(
        c, layers, hidden_size=c.count("hidden_size", 7168), context=context, vocab=129280,
        extra_layers=c.optional_count("num_nextn_predict_layers", 1, least=0) or 0,
    )  # fmt: skip


def router(c: ConfigReader) -> Router:
    """Sigmoid scores, a bias for picking, the best groups by the sum of their best two."""
    return Router(
        c.count("n_routed_experts", 256),
        c.count("num_experts_per_tok", 8),
        Scoring.SIGMOID,
        norm_power=1.0 if c.optional_flag("norm_topk_prob", True) else None,
        norm_epsilon=1e-20,
        scaling=c.number("routed_scaling_factor", 2.5),
        n_group=c.optional_count("n_group", 8) or 1,
        topk_group=c.optional_count("topk_group", 4) or 1,
        group_score=GroupScore.TOP2_SUM,
        correction_bias=True,
    )


FAMILY = Family(
    architectures=("DeepseekV3ForCausalLM",),
    model_types=("deepseek_v3", "kimi_k2"),
    read=read,
    layouts=(*both_layouts(BODY | MULTI_HEAD_LATENT | MLP | SHARED_EXPERTS | CORRECTION_BIAS), *gguf_layouts()),
)
