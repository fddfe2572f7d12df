"""Mistral Small 4: DeepSeek's latent attention, queries that grow with the text (Mistral4ForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import BODY, MLP, MULTI_HEAD_LATENT, SHARED_EXPERTS, Family, both_layouts
from moecli.model.families._parts import make_spec, multi_head_latent, text_part
from moecli.model.families.deepseek_v2 import dense_then_sparse
from moecli.model.spec import GroupScore, ModelSpec, QueryGrowth, Router

_USUAL_ROPE = {
    "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 128.0, "original_max_position_embeddings": 8192,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
_DERIVED = ("llama_4_scaling_beta", "partial_rotary_factor", "max_position_embeddings")


def read(config: Mapping[str, Any]) -> ModelSpec:
    key, part = text_part(config)
    plain, growth = _without_growth(part, key)
    c = ConfigReader(plain, "mistral4", f"{key}." if key else "")
    c.alias("n_routed_experts", "num_local_experts")
    context = c.count("max_position_embeddings", 1_048_576)
    attention = multi_head_latent(c, context, heads=32, query_rank=1024, nope_dim=64, kv_rank=256)
    router = Router(
        c.count("n_routed_experts", 128), c.count("num_experts_per_tok", 4),
        norm_power=1.0 if c.optional_flag("norm_topk_prob", True) else None, norm_epsilon=1e-20,
        scaling=c.number("routed_scaling_factor", 1.0), n_group=c.optional_count("n_group") or 1,
        topk_group=c.optional_count("topk_group") or 1, group_score=GroupScore.TOP2_SUM,
    )  # fmt: skip
    layers = dense_then_sparse(
        c, replace(attention, query_growth=growth), router,
        default_layers=36, default_dense=0, default_widths=(12288, 2048, 1),
    )  # fmt: skip
    notes = ("the text model alone: the vision tower is not counted",) if "vision_config" in config else ()
    return make_spec(c, layers, hidden_size=c.count("hidden_size", 4096), context=context, vocab=131_072, notes=notes)


def _without_growth(part: Mapping[str, Any], prefix: str) -> tuple[dict[str, Any], QueryGrowth | None]:
    """The rope's object also says how queries grow, and what share of a head rotates, which widths say."""
    key = "rope_scaling" if isinstance(part.get("rope_scaling"), dict) else "rope_parameters"
    rope = part.get(key)
    rope = _USUAL_ROPE if rope is None else rope
    if not isinstance(rope, dict):
        return dict(part), None
    c = ConfigReader(rope, "mistral4", f"{prefix}.{key}." if prefix else f"{key}.")
    beta = c.optional_number("llama_4_scaling_beta")
    growth = QueryGrowth(beta, c.count("original_max_position_embeddings")) if beta else None
    return {**part, key: {name: value for name, value in rope.items() if name not in _DERIVED}}, growth


FAMILY = Family(
    architectures=("Mistral4ForCausalLM",),
    model_types=("mistral4",),
    read=read,
    layouts=both_layouts(BODY | MULTI_HEAD_LATENT | MLP | SHARED_EXPERTS),
)
