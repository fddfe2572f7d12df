"""DeepSeekMoE-16B: many small experts beside shared ones, ordinary attention (arXiv 2401.06066)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import BODY, GROUPED_QUERY, MLP, SHARED_EXPERTS, Family, both_layouts, gguf_layouts
from moecli.model.families._parts import grouped_query, make_spec
from moecli.model.families.deepseek_v2 import dense_then_sparse
from moecli.model.spec import ModelSpec, Router

_NEUTRAL = {"scoring_func": ("softmax", None)}


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "deepseek", neutral=_NEUTRAL)
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 2048)
    bias = c.flag("attention_bias", False)
    attention = grouped_query(c, hidden_size, context, heads=32, qkv_bias=bias, output_bias=bias)
    top_k = c.count("num_experts_per_tok")
    router = Router(
        c.count("n_routed_experts"),
        top_k,
        norm_power=1.0 if c.flag("norm_topk_prob", False) and top_k > 1 else None,
        norm_epsilon=1e-20,
    )
    layers = dense_then_sparse(
        c, attention, router, default_layers=30, default_dense=0, default_widths=(11008, 1407, 0)
    )
    return make_spec(c, layers, hidden_size=hidden_size, context=context, vocab=102400)


FAMILY = Family(
    architectures=("DeepseekForCausalLM",),
    model_types=("deepseek",),
    read=read,
    layouts=(*both_layouts(BODY | GROUPED_QUERY | MLP | SHARED_EXPERTS), *gguf_layouts()),
)
