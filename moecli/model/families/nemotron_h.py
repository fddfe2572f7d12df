"""Nemotron 3 Nano: each block is one of Mamba-2, attention, or a mixture of two-matrix experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import BUFFERS, ExpertNames, Family, Layout, NamedSlice, gguf_layouts, names
from moecli.model.families._parts import MOST_LAYERS, biased_sigmoid, check_router, grouped_query, make_spec
from moecli.model.families._recurrent import NO_LIMIT, mamba2, mamba_names
from moecli.model.spec import NO_ATTENTION, NO_FFN, NO_ROPE, Extra, FeedForward, Layer, Mixture, ModelSpec, Part
from moecli.model.unsupported import Unsupported

_MAMBA, _ATTENTION, _MIXTURE, _DENSE = "M*E-"
_LETTERS = {
    "mamba": _MAMBA, "linear_attention": _MAMBA, "attention": _ATTENTION, "full_attention": _ATTENTION,
    "moe": _MIXTURE, "mlp": _DENSE,
}  # fmt: skip


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "nemotron_h")
    c.alias("n_routed_experts", "num_local_experts")
    c.alias("layers_block_type", "layer_types")
    c.ignore("mtp_layers_block_type", "mtp_hybrid_override_pattern")
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 4096)
    c.expect("mlp_bias", False)
    c.expect("use_bias", False)
    # Start values of training, how the state is stored and computed, and a rotation that no layer uses.
    c.ignore("time_step_floor", "time_step_max", "time_step_min", "rescale_prenorm_residual")
    c.expect("time_step_limit", *NO_LIMIT)
    c.expect("mamba_hidden_act", "silu")
    c.expect("mamba_proj_bias", False)
    c.ignore("mamba_ssm_cache_dtype", "chunk_size", "use_mamba_kernels", "num_logits_to_keep", "residual_in_fp32")
    c.ignore("rope_theta", "partial_rotary_factor", "norm_eps", "expand", "moe_shared_expert_overlap")
    c.expect("attention_bias", False)
    attention = grouped_query(
        c, hidden_size, context, heads=32, kv_heads=8, head_dim=128, window=c.optional_count("sliding_window")
    )
    activation = c.activation("mlp_hidden_act", "relu2")
    shared = FeedForward(c.count("moe_shared_expert_intermediate_size", 7688), activation, gated=False)
    mixture = Mixture(
        biased_sigmoid(c, experts=8, top_k=2),
        FeedForward(c.count("moe_intermediate_size", 7688), activation, gated=False),
        replace(shared, intermediate_size=shared.intermediate_size * c.count("n_shared_experts", 1)),
    )
    check_router(c, mixture)
    narrow = c.optional_count("moe_latent_size")
    mixture = replace(mixture, latent_width=narrow)
    ways = (
        Extra("experts_in", (narrow or 0, hidden_size), Part.OTHER),
        Extra("experts_out", (hidden_size, narrow or 0), Part.OTHER),
    )
    eps = c.number("layer_norm_epsilon", 1e-5)
    mixer = mamba2(
        hidden_size,
        heads=c.count("mamba_num_heads", 128),
        head_dim=c.count("mamba_head_dim", 64),
        groups=c.count("n_groups", 8),
        state_dim=c.count("ssm_state_size", 128),
        kernel=c.count("conv_kernel", 4, least=2),
        conv_bias=c.flag("use_conv_bias", True),
        eps=eps,
    )
    if mixer.heads % mixer.groups:
        raise c.fail("n_groups", f"is {mixer.groups}, which does not divide the {mixer.heads} heads")
    blocks = {
        _MAMBA: Layer(NO_ATTENTION, NO_FFN, mixer),
        _ATTENTION: Layer(replace(attention, rope=NO_ROPE), NO_FFN),
        _MIXTURE: Layer(NO_ATTENTION, mixture, extra=ways if narrow else ()),
        _DENSE: Layer(NO_ATTENTION, FeedForward(c.count("intermediate_size", 21504), activation, gated=False)),
    }
    pattern = _pattern(c)
    return make_spec(
        c, [blocks[kind] for kind in pattern],
        hidden_size=hidden_size, context=context, vocab=131_072, eps=eps, eps_key=None,
        extra_layers=c.count("num_nextn_predict_layers", 0, least=0),
        unsupported=(Unsupported.LATENT_EXPERTS,) if narrow else (),
    )  # fmt: skip


def _pattern(c: ConfigReader) -> str:
    """The blocks as letters; transformers 5 writes them as a list of words."""
    count = c.count("num_hidden_layers", least=0) if c.unused("num_hidden_layers") else None
    if c.raw("layers_block_type", None) is None:
        pattern = c.text("hybrid_override_pattern", "ME*-")
    else:
        listed = c.raw("layers_block_type")
        kinds = c.choices("layers_block_type", len(listed) if isinstance(listed, list) else 0, list(_LETTERS))
        pattern = "".join(_LETTERS[kind] for kind in kinds)
        c.ignore("hybrid_override_pattern")  # the list goes before it
    if wrong := set(pattern) - set(_LETTERS.values()):
        raise c.fail("hybrid_override_pattern", f"holds an unknown kind of block, '{min(wrong)}'")
    if count not in (None, len(pattern)) or len(pattern) > MOST_LAYERS:
        raise c.fail("num_hidden_layers", f"is {count}, and {len(pattern)} blocks are named")
    return pattern


def _layout(prefix: str, fused: bool) -> Layout:
    """`prefix` is "backbone." in published files, and "model." as transformers 5 has them in memory."""
    layer = f"{prefix}layers.{{layer}}."
    mixer = layer + "mixer."
    dense = (
        names(prefix, embedding="embeddings", final_norm="norm_f")
        | names(lm_head="lm_head")
        | names(layer, attn_norm="norm", ffn_norm="norm")
        | names(mixer, qkv="q_proj k_proj v_proj", o="o_proj", up="up_proj", down="down_proj", router="gate")
        | names(mixer, "", router_bias="gate.e_score_correction_bias", mixer_step_bias="dt_bias")
        | names(mixer + "shared_experts.", shared_up="up_proj", shared_down="down_proj")
        | mamba_names(mixer)
    )
    each = "experts." if fused else "experts.{expert}."
    up, down = (
        NamedSlice(f"{mixer}{each}{name}_proj{'' if fused else '.weight'}", stacked=fused) for name in ("up", "down")
    )
    return Layout(dense, ExpertNames(None, up, down), (*BUFFERS, r"mtp\..*"))


FAMILY = Family(
    architectures=("NemotronHForCausalLM",),
    model_types=("nemotron_h",),
    read=read,
    layouts=(
        *(_layout(prefix, fused) for prefix in ("backbone.", "model.") for fused in (False, True)),
        *gguf_layouts(gated=False, ffn_norm="attn_norm"),
    ),
)
