"""Step 3.7 Flash: gated heads, three windows to one full layer, 288 experts (stepfun-ai/Step-3.7-Flash)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import check_router, grouped_query, language_part, layer_count, make_spec, text_part
from moecli.model.spec import FeedForward, GroupedQuery, Layer, Mixture, ModelSpec, QkNorm, Router, Scoring
from moecli.model.unsupported import Unsupported

_KINDS = ("full_attention", "sliding_attention")


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = language_part(config, "step3p7")
    c.expect("scoring_func", "sigmoid")
    c.expect("use_moe_router_bias", True)
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 128_000)
    full = grouped_query(c, hidden_size, context, heads=64, kv_heads=8, head_dim=128, qk_norm=QkNorm.HEAD)
    full = replace(full, gate_width=full.heads)
    sliding = replace(_sliding(c, full), window=c.count("sliding_window", 512))
    activation = c.activation("hidden_act", "silu")
    router = Router(
        c.count("num_experts", 288),
        c.count("num_experts_per_tok", 8),
        Scoring.SIGMOID,
        norm_power=1.0,
        scaling=c.number("moe_router_scaling_factor", 1.0),
        correction_bias=True,
    )
    expert = FeedForward(c.count("moe_intermediate_size", 1280), activation)
    shared = c.count("n_shared_experts", 1) * c.count("share_expert_dim", 1280)
    mixture = Mixture(router, expert, FeedForward(shared, activation))
    check_router(c, mixture)
    dense = FeedForward(c.count("intermediate_size", 11264), activation)
    count, extra_layers = layer_count(c, 45), c.count("num_nextn_predict_layers", 0, least=0)
    first = c.count("first_k_dense_replace", 3, least=0)
    kinds = c.choices("layer_types", count, _KINDS, ["full_attention"] * count, spare=extra_layers)
    layers = [
        Layer(sliding if kind == "sliding_attention" else full, mixture if index >= first else dense)
        for index, kind in enumerate(kinds)
    ]
    silent = "attention_other_setting" not in text_part(config)[1]
    return make_spec(
        c, layers, hidden_size=hidden_size, context=context, vocab=128_815, eps=1e-5, extra_layers=extra_layers,
        unsupported=(Unsupported.GATED_HEADS, Unsupported.ZERO_CENTRED_NORMS),
        notes=("structure inferred from config.json",)
        + (("this file gives windows no head count of their own; the released model may",) if silent else ()),
    )  # fmt: skip


def _sliding(c: ConfigReader, full: GroupedQuery) -> GroupedQuery:
    """Windows may have another number of heads."""
    part = c.nested("attention_other_setting")
    if part is None:
        return full
    heads = part.count("num_attention_heads", full.heads)
    part.expect("head_dim", full.head_dim)
    part.expect("num_attention_groups", full.kv_heads)
    part.finish(irrelevant=("attention_type", "true_head_dim"))
    return replace(full, heads=heads, gate_width=heads)


FAMILY = Family(
    architectures=("Step3p7FlashForCausalLM", "Step3p7ForConditionalGeneration"),
    model_types=("step3p7",),
    read=read,
)
