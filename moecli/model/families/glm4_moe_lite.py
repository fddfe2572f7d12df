"""GLM-4.7-Flash: DeepSeek-V3 at a small size, values as wide as its keys (Glm4MoeLiteForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import biased_sigmoid, make_spec, multi_head_latent
from moecli.model.families.deepseek_v2 import dense_then_sparse
from moecli.model.families.deepseek_v3 import FAMILY as V3
from moecli.model.spec import ModelSpec

# Other implementations read them; transformers' is written for these values.
_NEUTRAL = {"scoring_func": ("sigmoid", None), "topk_method": ("noaux_tc", None)}


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "glm4_moe_lite", neutral=_NEUTRAL)
    c.alias("n_routed_experts", "num_local_experts")
    c.alias("qk_rope_head_dim", "head_dim")
    context = c.count("max_position_embeddings", 202_752)
    attention = multi_head_latent(c, context, heads=20, query_rank=768, nope_dim=192, value_dim=256)
    c.expect("num_key_value_heads", attention.heads, None)
    layers = dense_then_sparse(
        c,
        attention,
        biased_sigmoid(c, experts=64, top_k=4, scaling=1.8),
        default_layers=47,
        default_dense=1,
        default_widths=(10240, 1536, 1),
    )
    return make_spec(
        c, layers, hidden_size=c.count("hidden_size", 2048), context=context, vocab=154_880, eps=1e-5,
        extra_layers=c.optional_count("num_nextn_predict_layers", 0, least=0) or 0,
    )  # fmt: skip


FAMILY = Family(
    architectures=("Glm4MoeLiteForCausalLM",), model_types=("glm4_moe_lite",), read=read, layouts=V3.layouts
)
