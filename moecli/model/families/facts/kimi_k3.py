"""Kimi-K3: delta attention with latent attention in every fourth layer, 896 experts in a narrower space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import check_router, language_part, layer_count, make_spec
from moecli.model.spec import (
    MLA,
    NO_ATTENTION,
    NO_ROPE,
    Extra,
    FeedForward,
    GroupScore,
    Layer,
    Mixture,
    ModelSpec,
    Part,
    Recurrent,
    RecurrentKind,
    Router,
    Scoring,
)
from moecli.model.unsupported import Unsupported


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = language_part(config, "kimi_k3")
    c.expect("use_grouped_topk", True)
    c.expect("moe_router_activation_func", "sigmoid")
    c.expect("topk_method", "noaux_tc")
    c.expect("mla_use_nope", True)
    c.expect("moe_layer_freq", 1)
    c.ignore("activation_situ_beta", "activation_situ_linear_beta", "num_key_value_heads", "model_max_length")
    hidden_size = c.count("hidden_size")
    activation = c.activation("hidden_act")
    linear = c.nested("linear_attn_config")
    if linear is None:
        raise c.fail("linear_attn_config", "is missing")
    mixture = _mixture(c, hidden_size)
    dense = FeedForward(c.count("intermediate_size"), activation)
    count, first = layer_count(c, 93), c.count("first_k_dense_replace", 1, least=0)
    residuals = c.optional_count("attn_res_block_size")
    around = _residual("attn", hidden_size) + _residual("ffn", hidden_size) if residuals else ()
    latent, delta = _latent(c), _delta(linear, hidden_size)
    full = {number - 1 for number in linear.indices("full_attn_layers", count + 1)}  # the file counts from one
    linear.expect("kda_layers", [index + 1 for index in range(count) if index not in full])
    linear.finish(irrelevant=("gate_lower_bound",))

    def layer(index: int) -> Layer:
        ffn, extra = (dense, around) if index < first else (mixture, around + _narrowing(c, hidden_size, mixture))
        if index in full:
            return Layer(latent, ffn, extra=extra)
        return Layer(NO_ATTENTION, ffn, delta, extra=extra)

    layers = [layer(index) for index in range(count)]
    return make_spec(
        c, layers, hidden_size=hidden_size, context=c.count("max_position_embeddings", 1_048_576), vocab=163_840,
        eps=1e-5, extra=_residual("output", hidden_size) if residuals else (),
        extra_layers=c.count("num_nextn_predict_layers", 0, least=0),
        unsupported=(Unsupported.LINEAR_ATTENTION, Unsupported.LATENT_EXPERTS, Unsupported.CROSS_LAYER_ATTENTION),
        notes=("structure inferred from config.json", "the text model alone: the vision tower is not counted"),
    )  # fmt: skip


def _mixture(c: ConfigReader, hidden_size: int) -> Mixture:
    router = Router(
        c.count("num_experts"),
        c.count("num_experts_per_token"),
        Scoring.SIGMOID,
        norm_power=1.0 if c.flag("moe_renormalize", True) else None,
        norm_epsilon=1e-20,
        scaling=c.number("routed_scaling_factor", 1.0),
        n_group=c.count("num_expert_group", 1),
        topk_group=c.count("topk_group", 1),
        group_score=GroupScore.TOP2_SUM,
        correction_bias=True,
    )
    expert = FeedForward(c.count("moe_intermediate_size"), c.activation("hidden_act"))
    shared = FeedForward(expert.intermediate_size * c.count("num_shared_experts"), expert.activation)
    mixture = Mixture(router, expert, shared, latent_width=c.optional_count("routed_expert_hidden_size"))
    check_router(c, mixture)
    return mixture


def _narrowing(c: ConfigReader, hidden_size: int, mixture: Mixture) -> tuple[Extra, ...]:
    """The way into the experts' space and back, with a norm on what they return."""
    normed, narrow = c.flag("latent_moe_use_norm", False), mixture.latent_width
    if narrow is None:
        return ()
    ways = (
        Extra("experts_in", (narrow, hidden_size), Part.OTHER),
        Extra("experts_out", (hidden_size, narrow), Part.OTHER),
    )
    return (*ways, Extra("experts_norm", (narrow,), Part.NORMS)) if normed else ways


def _residual(name: str, hidden_size: int) -> tuple[Extra, ...]:
    """What weighs the outputs of earlier blocks of layers against each other."""
    return (
        Extra(f"{name}_residual", (1, hidden_size), Part.OTHER),
        Extra(f"{name}_residual_norm", (hidden_size,), Part.NORMS),
    )


def _latent(c: ConfigReader) -> MLA:
    heads, nope, rope_dim = c.count("num_attention_heads"), c.count("qk_nope_head_dim"), c.count("qk_rope_head_dim")
    value_dim = c.count("v_head_dim")
    return MLA(
        heads, c.optional_count("q_lora_rank"), c.count("kv_lora_rank"), nope, rope_dim, value_dim, NO_ROPE,
        scale=(nope + rope_dim) ** -0.5,
        gate_width=heads * value_dim if c.flag("mla_use_output_gate", False) else 0,
    )  # fmt: skip


def _delta(part: ConfigReader, hidden_size: int) -> Recurrent:
    """Kimi delta attention (arXiv 2510.26692): a gated delta net with one decay per channel, from a low-rank gate."""
    heads, dim, kernel = part.count("num_heads"), part.count("head_dim"), part.count("short_conv_kernel_size")
    part.expect("use_full_rank_gate", True)
    inner = heads * dim
    shapes: dict[str, tuple[int, ...]] = {
        "qkv": (3 * inner, hidden_size),
        "conv": (3 * inner, kernel),
        "decay_a": (dim, hidden_size),
        "decay_b": (inner, dim),
        "dt_bias": (inner,),
        "a_log": (dim,),  # as the released tensors are said to be shaped
        "beta": (heads, hidden_size),
        "gate": (inner, hidden_size),
        "norm": (dim,),
        "o": (hidden_size, inner),
    }
    tensors = tuple(Extra(f"linear_{role}", shape, Part.MIXER_OTHER) for role, shape in shapes.items())
    return Recurrent(RecurrentKind.CHANNEL_DELTA, tensors, state=inner * dim + 3 * inner * (kernel - 1))


FAMILY = Family(architectures=("KimiK3ForConditionalGeneration",), model_types=("kimi_k3",), read=read)
