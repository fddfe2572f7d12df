"""Step 3.5 and 3.7 Flash: gated heads, three windows to one full layer, 288 experts (stepfun-ai/Step-3.7-Flash)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families import _layout as on_disk
from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import ExpertNames, Family, Layout, NamedSlice, names
from moecli.model.families._parts import check_router, language_part, layer_count, layer_overrides, make_spec
from moecli.model.families._rope import RopeDefaults, read_ropes_by_layer
from moecli.model.spec import (
    Activation,
    FeedForward,
    GroupedQuery,
    Layer,
    Mixture,
    ModelSpec,
    NormKind,
    QkNorm,
    Router,
    Scoring,
)

_FULL, _SLIDING = _KINDS = ("full_attention", "sliding_attention")
_ALIASES = {
    "num_key_value_heads": "num_attention_groups", "num_experts_per_tok": "moe_top_k",
    "n_routed_experts": "moe_num_experts num_local_experts num_experts", "share_expert_dim": "share_expert_dims",
    "num_nextn_predict_layers": "num_mtp_layers",
}  # fmt: skip
_CUTS = {None: Activation.SILU, 0: Activation.SILU, 7: Activation.SILU_TO_7, 16: Activation.SILU_TO_16}
# Other implementations read them; transformers' is written for these values.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "use_bidirectional_attention": (False, None),
    "n_shared_experts": (1, None),
    "yarn_only_types": ([_FULL], None),
    "att_impl_type": ("GQA", None),
    **dict.fromkeys(("scoring_func", "moe_router_activation"), ("sigmoid", None)),
    **dict.fromkeys(
        ("use_moe_router_bias", "norm_expert_weight", "use_moe", "use_head_wise_attn_gate", "gating"), (True, None)
    ),
}


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = language_part(config, "step3p7", _NEUTRAL)
    for key, others in _ALIASES.items():
        c.alias(key, *others.split())
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 128_000)
    count, extra_layers = layer_count(c, 45), c.count("num_nextn_predict_layers", 0, least=0)
    kinds = c.choices("layer_types", count, _KINDS, [_FULL] * count, spare=extra_layers)
    c.ignore("mtp_layer_types", "mtp_mlp_layer_types", "max_seq_len")
    attentions, sparse = _attentions(c, context, kinds), _sparse(c, count, extra_layers)
    router = Router(
        c.count("n_routed_experts", 288), c.count("num_experts_per_tok", 8), Scoring.SIGMOID, norm_power=1.0,
        scaling=c.number("moe_router_scaling_factor", 1.0), correction_bias=True,
    )  # fmt: skip
    routed, shared = (  # at which number the products of experts are cut, those of shared and of dense ones
        [_CUTS[cut] for cut in c.choices(key, count, tuple(_CUTS), [None] * count, spare=extra_layers)]
        for key in ("swiglu_limits", "swiglu_limits_shared")
    )
    width, always = c.count("moe_intermediate_size", 1280), c.count("share_expert_dim", 1280)
    dense, layers = c.count("intermediate_size", 11264), []
    for index, kind in enumerate(kinds):
        mixture = Mixture(router, FeedForward(width, routed[index]), FeedForward(always, shared[index]))
        check_router(c, mixture)
        layers.append(Layer(attentions[kind], mixture if sparse[index] else FeedForward(dense, shared[index])))
    notes = ("the text model alone: the vision tower is not counted",) if "vision_config" in config else ()
    return make_spec(
        c, layers, hidden_size=hidden_size, context=context, vocab=128_815, eps=1e-5, extra_layers=extra_layers,
        norm=NormKind.ZERO_CENTRED, notes=notes,
    )  # fmt: skip


def _attentions(c: ConfigReader, context: int, kinds: list[str]) -> dict[str, GroupedQuery]:
    """Windows may have another number of heads."""
    heads, kv_heads, head_dim = (
        c.count("num_attention_heads", 64), c.count("num_key_value_heads", 8), c.count("head_dim", 128)
    )  # fmt: skip
    scalar, bias = c.optional_number("query_pre_attn_scalar") or head_dim, c.flag("attention_bias", False)
    own = layer_overrides(c, [index for index, kind in enumerate(kinds) if kind == _SLIDING])
    other, many = c.nested("attention_other_setting"), c.optional_count("num_sliding_attention_heads") or heads
    if own is not None:
        many = own.count("num_attention_heads", heads)
        own.finish((), strict=True)
    if other is not None:
        many = other.count("num_attention_heads", heads)
        other.expect("head_dim", head_dim)
        other.expect("num_attention_groups", kv_heads)
        other.finish(("attention_type", "true_head_dim"))
    for each in (heads, many):
        if each % kv_heads:
            raise c.fail("num_attention_heads", f"is {each}, no multiple of the {kv_heads} key/value heads")
    ropes = read_ropes_by_layer(c, context, kinds, dict.fromkeys(_KINDS, RopeDefaults(head_dim, 10_000.0, 1.0)), _FULL)
    full = GroupedQuery(
        heads, kv_heads, head_dim, ropes[_FULL], scalar**-0.5, qkv_bias=bias, output_bias=bias, qk_norm=QkNorm.HEAD,
        gate_width=heads,
    )  # fmt: skip
    window = c.optional_count("sliding_window") or 512
    sliding = replace(full, heads=many, gate_width=many, rope=ropes[_SLIDING], window=window)
    return {_FULL: full, _SLIDING: sliding}


def _sparse(c: ConfigReader, count: int, spare: int) -> list[bool]:
    """Which layers are mixtures: by name, by a list of their numbers, or all from some layer on."""
    numbers, first = c.raw("moe_layers_enum", None), c.count("first_k_dense_replace", 3, least=0)
    usual = [index >= first for index in range(count)]
    if numbers is not None:
        texts = (
            str(numbers).split(",")
            if isinstance(numbers, str | int)
            else [str(each) for each in numbers]
            if isinstance(numbers, list)
            else [""]
        )
        if not all(text.strip().isdecimal() for text in texts):
            raise c.fail("moe_layers_enum", "must be a list of layers")
        usual = [index in {int(text) for text in texts} for index in range(count)]
    names_ = c.choices(
        "mlp_layer_types", count, ("dense", "sparse"), ["sparse" if each else "dense" for each in usual], spare=spare
    )
    return [name == "sparse" for name in names_]


_LAYER = "model.layers.{layer}."
_DENSE = on_disk.BODY | on_disk.GROUPED_QUERY | on_disk.MLP | names(_LAYER, attn_gate="self_attn.g_proj")
_FUSED = _DENSE | on_disk.SHARED_EXPERTS | on_disk.CORRECTION_BIAS
_TOWER = (r"(vision_model|vit_large_projector)\..+",)
FAMILY = Family(
    architectures=("Step3p7FlashForCausalLM", "Step3p7ForConditionalGeneration", "Step3p5ForCausalLM"),
    model_types=("step3p7", "step3p5"),
    read=read,
    layouts=(
        Layout(
            _DENSE
            | names(_LAYER, router="moe.gate", shared_gate_up="share_expert.gate_proj share_expert.up_proj",
                    shared_down="share_expert.down_proj")
            | names(_LAYER, "", router_bias="moe.router_bias"),
            ExpertNames(
                *(NamedSlice(f"{_LAYER}moe.{name}_proj.weight", stacked=True) for name in ("gate", "up", "down"))
            ),
            on_disk.BUFFERS + _TOWER,
        ),
        Layout(_FUSED, on_disk.fused("mlp.experts"), on_disk.BUFFERS),
    ),
)  # fmt: skip
