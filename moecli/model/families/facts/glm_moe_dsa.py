"""GLM-5: the blocks of DeepSeek-V3.2 in other sizes (GlmMoeDsaForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import biased_sigmoid, multi_head_latent
from moecli.model.families.deepseek_v2 import dense_then_sparse
from moecli.model.families.facts.deepseek_v32 import indexed
from moecli.model.spec import ModelSpec


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "glm_moe_dsa")
    context = c.count("max_position_embeddings", 202_752)
    router = biased_sigmoid(c, experts=256, top_k=8, scaling=2.5)
    layers = dense_then_sparse(
        c, multi_head_latent(c, context, heads=64, query_rank=2048), router,
        default_layers=78, default_dense=3, default_widths=(12288, 2048, 1),
    )  # fmt: skip
    return indexed(c, layers, index_heads=32, hidden_size=6144, context=context, vocab=154_880)


FAMILY = Family(architectures=("GlmMoeDsaForCausalLM",), model_types=("glm_moe_dsa",), read=read)
