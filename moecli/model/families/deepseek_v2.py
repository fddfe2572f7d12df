"""DeepSeek-V2: latent attention, many small experts in groups, shared experts (arXiv 2405.04434)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import (
    BODY,
    MLP,
    MULTI_HEAD_LATENT,
    SHARED_EXPERTS,
    Family,
    both_layouts,
    gguf_layouts,
)
from moecli.model.families._parts import check_router, layer_count, make_spec, multi_head_latent
from moecli.model.spec import FeedForward, GroupScore, Layer, Mixture, ModelSpec, Router

_NEUTRAL = {"scoring_func": ("softmax", None)}  # the vendor's code reads it, transformers' does not


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "deepseek_v2", neutral=_NEUTRAL)
    c.alias("n_routed_experts", "num_experts", "num_local_experts")
    context = c.count("max_position_embeddings", 2048)
    attention = multi_head_latent(c, context, heads=32)
    layers = dense_then_sparse(
        c, attention, _router(c), default_layers=32, default_dense=0, default_widths=(11008, 1407, 2)
    )
    return make_spec(c, layers, hidden_size=c.count("hidden_size", 4096), context=context, vocab=102400)


def _router(c: ConfigReader) -> Router:
    """Normalising replaces scaling, as in the vendor's code; it does not precede it."""
    method = c.text("topk_method", "greedy")
    c.expect("topk_method", "greedy", "group_limited_greedy")
    n_group, topk_group = c.optional_count("n_group") or 1, c.optional_count("topk_group") or 1
    if method == "greedy":
        n_group = topk_group = 1
    top_k = c.count("num_experts_per_tok")
    normalise = c.optional_flag("norm_topk_prob", False) and top_k > 1
    scaling = c.number("routed_scaling_factor", 1.0)
    return Router(
        c.count("n_routed_experts", 64),
        top_k,
        norm_power=1.0 if normalise else None,
        norm_epsilon=1e-20,
        scaling=1.0 if normalise else scaling,
        n_group=n_group,
        topk_group=topk_group,
        group_score=GroupScore.MAX,
    )


def dense_then_sparse(
    c: ConfigReader,
    attention: Any,
    router: Router,
    *,
    default_layers: int,
    default_dense: int,
    default_widths: tuple[int, int, int],
) -> tuple[Layer, ...]:
    """Dense blocks first, mixtures after. `default_widths`: dense width, expert width, shared experts."""
    dense_width, expert_width, shared_count = default_widths
    activation = c.activation("hidden_act", "silu")
    expert = FeedForward(c.count("moe_intermediate_size", expert_width), activation)
    shared = c.optional_count("n_shared_experts", shared_count, least=0) or 0
    mixture = Mixture(router, expert, FeedForward(expert.intermediate_size * shared, activation) if shared else None)
    check_router(c, mixture)
    dense = FeedForward(c.count("intermediate_size", dense_width), activation)
    first = c.optional_count("first_k_dense_replace", default_dense, least=0) or 0
    every, count = c.count("moe_layer_freq", 1), layer_count(c, default_layers)
    usual = ["sparse" if index >= first and index % every == 0 else "dense" for index in range(count)]
    kinds = c.choices("mlp_layer_types", count, ("dense", "sparse"), usual)
    return tuple(Layer(attention, mixture if kind == "sparse" else dense) for kind in kinds)


FAMILY = Family(
    architectures=("DeepseekV2ForCausalLM",),
    model_types=("deepseek_v2",),
    read=read,
    layouts=(*both_layouts(BODY | MULTI_HEAD_LATENT | MLP | SHARED_EXPERTS), *gguf_layouts()),
)
