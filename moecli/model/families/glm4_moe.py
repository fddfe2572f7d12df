"""GLM-4.5, 4.6 and 4.7: DeepSeek-V3 routing with ordinary attention, half of each head rotates (Glm4MoeForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import (
    BODY,
    CORRECTION_BIAS,
    GROUPED_QUERY,
    MLP,
    SHARED_EXPERTS,
    Family,
    both_layouts,
    gguf_layouts,
)
from moecli.model.families._parts import biased_sigmoid, grouped_query, make_spec
from moecli.model.families.deepseek_v2 import dense_then_sparse
from moecli.model.spec import ModelSpec, QkNorm

# Other implementations read them; transformers' is written for these values.
_NEUTRAL = {"scoring_func": ("sigmoid", None), "topk_method": ("noaux_tc", None)}


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "glm4_moe", neutral=_NEUTRAL)
    c.alias("n_routed_experts", "num_local_experts")
    c.alias("num_nextn_predict_layers", "num_mtp_layers")
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 131_072)
    attention = grouped_query(
        c, hidden_size, context, heads=96, kv_heads=8, rotary=0.5, qkv_bias=c.flag("attention_bias", False),
        qk_norm=QkNorm.HEAD if c.flag("use_qk_norm", False) else QkNorm.NONE,
    )  # fmt: skip
    layers = dense_then_sparse(
        c,
        attention,
        biased_sigmoid(c, experts=128, top_k=8),
        default_layers=46,
        default_dense=1,
        default_widths=(10944, 1408, 1),
    )
    return make_spec(
        c, layers, hidden_size=hidden_size, context=context, vocab=151_552, eps=1e-5,
        extra_layers=c.optional_count("num_nextn_predict_layers", 1, least=0) or 0,
    )  # fmt: skip


FAMILY = Family(
    architectures=("Glm4MoeForCausalLM",),
    model_types=("glm4_moe",),
    read=read,
    layouts=(
        *both_layouts(BODY | GROUPED_QUERY | MLP | SHARED_EXPERTS | CORRECTION_BIAS),
        *gguf_layouts(ffn_norm="post_attention_norm"),
    ),
)
