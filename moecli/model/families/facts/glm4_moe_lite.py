"""GLM-4.7-Flash: DeepSeek-V3 at a small size (Glm4MoeLiteForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import biased_sigmoid, make_spec, multi_head_latent
from moecli.model.families.deepseek_v2 import dense_then_sparse
from moecli.model.spec import ModelSpec
from moecli.model.unsupported import Unsupported


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "glm4_moe_lite")
    context = c.count("max_position_embeddings", 202_752)
    attention = multi_head_latent(c, context, heads=20, query_rank=768)
    c.expect("scoring_func", "sigmoid")
    c.expect("topk_method", "noaux_tc")
    router = biased_sigmoid(c, experts=64, top_k=4, scaling=1.8)
    layers = dense_then_sparse(
        c, attention, router, default_layers=47, default_dense=1, default_widths=(10240, 1536, 1)
    )
    return make_spec(
        c, layers, hidden_size=c.count("hidden_size", 2048), context=context, vocab=154_880, eps=1e-5,
        extra_layers=c.count("num_nextn_predict_layers", 0, least=0),
        unsupported=(Unsupported.UNCOMPARED,),
    )  # fmt: skip


FAMILY = Family(architectures=("Glm4MoeLiteForCausalLM",), model_types=("glm4_moe_lite",), read=read)
