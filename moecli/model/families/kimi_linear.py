"""Kimi Linear: delta attention with a decay per channel, latent attention without positions in every fourth layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import (
    BODY,
    CORRECTION_BIAS,
    MLP,
    MULTI_HEAD_LATENT,
    SHARED_EXPERTS,
    Family,
    Layout,
    fused,
    names,
    per_expert,
)
from moecli.model.families._parts import biased_sigmoid, layer_count, make_spec
from moecli.model.families._recurrent import kimi_delta, kimi_delta_names
from moecli.model.families.deepseek_v2 import dense_then_sparse
from moecli.model.spec import MLA, NO_ATTENTION, NO_ROPE, Layer, ModelSpec, Recurrent

# The vendor's code reads them, or that of Kimi-K3, which has this model_type inside; here they are as transformers' is.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "mla_use_nope": (True, None),
    "moe_router_activation_func": ("sigmoid", None),
    "use_grouped_topk": (True, None),
    "num_nextn_predict_layers": (0, None),
    "mla_use_output_gate": (False, None),
    "attn_res_block_size": (0, None),
    "routed_expert_hidden_size": (None,),
}
# transformers' names of what the published file calls otherwise
_RENAMED = {
    "max_position_embeddings": "model_max_length", "norm_topk_prob": "moe_renormalize", "n_group": "num_expert_group",
    "num_local_experts": "num_experts", "num_experts_per_tok": "num_experts_per_token",
    "n_shared_experts": "num_shared_experts",
}  # fmt: skip
_KINDS = ("linear_attention", "full_attention")


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "kimi_linear", neutral=_NEUTRAL)
    for key, published in _RENAMED.items():
        c.alias(key, published)
    hidden_size, context = c.count("hidden_size", 2304), c.count("max_position_embeddings", 1_048_576)
    router = biased_sigmoid(c, experts=256, top_k=8, scaling=2.446, experts_key="num_local_experts")
    usual = dense_then_sparse(
        c, _latent(c), router, default_layers=27, default_dense=1, default_widths=(9216, 1024, 1)
    )  # fmt: skip
    c.expect("hidden_act", "silu", "swish")  # of the convolutions, too
    linear = c.nested("linear_attn_config")
    delta = _delta(c, linear, hidden_size)
    kinds = _kinds(c, linear, len(usual))
    if linear is not None:
        linear.finish(irrelevant=())

    def layer(index: int) -> Layer:
        full = kinds[index] == "full_attention"
        return usual[index] if full else replace(usual[index], attention=NO_ATTENTION, recurrent=delta)

    layers = [layer(index) for index in range(layer_count(c, 27))]
    return make_spec(c, layers, hidden_size=hidden_size, context=context, vocab=163_840, eps=1e-5)


def _latent(c: ConfigReader) -> MLA:
    """Latent attention whose shared key is not rotated."""
    c.ignore("num_key_value_heads", "head_dim", "qk_head_dim", "rope_theta", "rope_scaling", "rope_parameters")
    nope, shared = c.count("qk_nope_head_dim", 128), c.count("qk_rope_head_dim", 64)
    return MLA(
        c.count("num_attention_heads", 32), c.optional_count("q_lora_rank"), c.count("kv_lora_rank", 512), nope, shared,
        c.count("v_head_dim", 128), NO_ROPE, scale=(nope + shared) ** -0.5, bias=c.flag("attention_bias", False),
    )  # fmt: skip


def _delta(c: ConfigReader, linear: ConfigReader | None, hidden_size: int) -> Recurrent:
    """The published file has its sizes in an object of their own, which goes before transformers' keys."""
    found = {key: c.count(*name) for key, name in _SIZES.items()}
    if linear is not None:
        found = {key: linear.count(key, size) for key, size in found.items()}
        linear.expect("use_full_rank_gate", False, None)  # as Kimi-K3 has it, and the next
        linear.expect("gate_lower_bound", None)
    heads, dim, kernel = found.values()
    eps = c.number("rms_norm_eps", 1e-5)
    return kimi_delta(hidden_size, heads=heads, dim=dim, kernel=kernel, eps=eps, rank=dim)


_SIZES: dict[str, tuple[str, int]] = {
    "num_heads": ("linear_num_heads", 32), "head_dim": ("linear_head_dim", 128),
    "short_conv_kernel_size": ("linear_conv_kernel_dim", 4),
}  # fmt: skip


def _kinds(c: ConfigReader, linear: ConfigReader | None, count: int) -> list[str]:
    """What mixes the tokens of each layer: by name, or by two lists that count from one."""
    usual = [_KINDS[index > 0 and index % 4 == 0] for index in range(count)]
    if linear is not None and linear.raw("full_attn_layers", None) is not None:
        full = {number - 1 for number in linear.indices("full_attn_layers", count + 1)}
        usual = [_KINDS[index in full] for index in range(count)]
        linear.expect("kda_layers", [index + 1 for index in range(count) if index not in full])
        c.choices("layer_types", count, _KINDS, usual)
        c.expect("layer_types", usual, None)
        return usual
    return c.choices("layer_types", count, _KINDS, usual)


_SHARED = BODY | MULTI_HEAD_LATENT | MLP | SHARED_EXPERTS | CORRECTION_BIAS
_BLOCK = "model.layers.{layer}.block_sparse_moe."
_PUBLISHED = (
    _SHARED
    | names(_BLOCK, router="gate")
    | names(_BLOCK + "gate.", "", router_bias="e_score_correction_bias")
    | names(_BLOCK + "shared_experts.", shared_gate_up="gate_proj up_proj", shared_down="down_proj")
    | kimi_delta_names(published=True)
)
_EXPERTS = per_expert("block_sparse_moe.experts", "w1", "w3", "w2")
FAMILY = Family(
    architectures=("KimiLinearForCausalLM",),
    model_types=("kimi_linear",),
    read=read,
    layouts=(
        Layout(_PUBLISHED, _EXPERTS),
        # as transformers 5 writes it
        Layout(_PUBLISHED | names(_BLOCK, gate_up="gate_proj up_proj", down="down_proj"), _EXPERTS),
        Layout(_SHARED | kimi_delta_names(published=False), fused("mlp.experts")),
    ),
)
