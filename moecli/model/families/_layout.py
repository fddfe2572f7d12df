"""The names tensors have on disk, as data: role -> name templates, and where each expert matrix lies."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from moecli.model.spec import Layer, ModelSpec


@dataclass(frozen=True, slots=True)
class NamedSlice:
    """One matrix of each expert, by the name of the stored tensor that holds it, or holds it among others."""

    name: str  # with {layer} and, for per-expert tensors, {expert}
    stacked: bool = False  # all experts along axis 0, as [E, rows, columns] or [E * rows, columns]
    half: int | None = None  # 0 or 1: first or second half of the outputs (gate and up fused)
    interleaved: bool = False  # the halves take turns, output by output
    transposed: bool = False  # stored [in, out]


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """Where gate, up and down of every expert lie."""

    gate: NamedSlice | None  # None: an expert of two matrices
    up: NamedSlice
    down: NamedSlice


@dataclass(frozen=True, slots=True)
class Interleaved:
    """A stored tensor whose rows belong to several matrices in turn: some of each, then of the first again."""

    rows: Callable[[Layer], tuple[int, ...]]  # of each matrix in one turn
    roles: tuple[str, ...]  # of each matrix; several of one role are stacked


@dataclass(frozen=True, slots=True)
class Layout:
    """One way a family is written to disk. Several names under a role are stacked by rows."""

    dense: Mapping[str, tuple[str, ...]]
    experts: ExpertNames | None = None  # of a dense model
    ignored: tuple[str, ...] = ()  # regular expressions of names that carry no weights we need
    encoder: Layout | None = None  # its layers, numbered from 0 in their names
    copies: tuple[str, ...] = ()  # further names of the input table
    interleaved: Mapping[str, Interleaved] = field(default_factory=dict)  # by the name under each of its roles
    biases: ExpertNames | None = None  # of the experts' matrices: [E, out]


@dataclass(frozen=True, slots=True)
class Family:
    """One dialect of config.json and its tensor names."""

    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], ModelSpec]
    layouts: tuple[Layout, ...] = ()  # none: its files are only counted
    signature: str | None = None  # a config key that only this family has, for files that name no architecture


def names(prefix: str = "", suffix: str = ".weight", **roles: str) -> dict[str, tuple[str, ...]]:
    """Roles whose names share a prefix and a suffix; a space separates tensors stacked by rows."""
    return {role: tuple(f"{prefix}{name}{suffix}" for name in text.split()) for role, text in roles.items()}


_LAYER = "model.layers.{layer}."

# What Llama's descendants share.
BODY = (
    names("model.", embedding="embed_tokens", final_norm="norm")
    | names(lm_head="lm_head")
    | names(_LAYER, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm")
)
GROUPED_QUERY = (
    names(_LAYER + "self_attn.", qkv="q_proj k_proj v_proj", o="o_proj", q_norm="q_norm", k_norm="k_norm")
    | names(_LAYER + "self_attn.", ".bias", qkv_bias="q_proj k_proj v_proj", o_bias="o_proj")
)  # fmt: skip
MULTI_HEAD_LATENT = (
    names(
        _LAYER + "self_attn.",
        q="q_proj", q_a="q_a_proj", q_a_norm="q_a_layernorm", q_b="q_b_proj",
        kv_a="kv_a_proj_with_mqa", kv_a_norm="kv_a_layernorm", kv_b="kv_b_proj", o="o_proj",
    )
    | names(_LAYER + "self_attn.", ".bias", q_a_bias="q_a_proj", kv_a_bias="kv_a_proj_with_mqa", o_bias="o_proj")
)  # fmt: skip
INDEXER = names(
    _LAYER + "self_attn.indexer.", index_q="wq_b", index_k="wk", index_weights="weights_proj", index_k_norm="k_norm"
) | names(_LAYER + "self_attn.indexer.", ".bias", index_k_norm_bias="k_norm")
MLP = names(_LAYER + "mlp.", gate_up="gate_proj up_proj", down="down_proj", router="gate")
SHARED_EXPERTS = names(_LAYER + "mlp.shared_experts.", shared_gate_up="gate_proj up_proj", shared_down="down_proj")
CORRECTION_BIAS = names(_LAYER + "mlp.gate.", "", router_bias="e_score_correction_bias")
BUFFERS = (r".*\.rotary_emb\.inv_freq",)


def per_expert(prefix: str, gate: str, up: str, down: str) -> ExpertNames:
    """One tensor per matrix and expert, as Hub repositories hold them."""
    return ExpertNames(*(NamedSlice(f"{_LAYER}{prefix}.{{expert}}.{name}.weight") for name in (gate, up, down)))


def fused(prefix: str, transposed: bool = False) -> ExpertNames:
    """One 3-D tensor for all experts, as transformers 5 holds them in memory: [E, 2I, H] and [E, H, I].

    `transposed`: [E, H, 2I] and [E, I, H].
    """
    gate_up, down = f"{_LAYER}{prefix}.gate_up_proj", f"{_LAYER}{prefix}.down_proj"
    return ExpertNames(
        NamedSlice(gate_up, stacked=True, half=0, transposed=transposed),
        NamedSlice(gate_up, stacked=True, half=1, transposed=transposed),
        NamedSlice(down, stacked=True, transposed=transposed),
    )


def both_layouts(
    dense: Mapping[str, tuple[str, ...]],
    prefix: str = "mlp.experts",
    matrices: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    ignored: tuple[str, ...] = BUFFERS,
    interleaved: Mapping[str, Interleaved] = MappingProxyType({}),
) -> tuple[Layout, ...]:
    """The two ways experts are written: one tensor for each matrix of each, and fused."""
    return tuple(
        Layout(dense, experts, ignored, interleaved=interleaved)
        for experts in (per_expert(prefix, *matrices), fused(prefix))
    )


def mlx_layouts(layouts: tuple[Layout, ...]) -> tuple[Layout, ...]:
    """What mlx-lm makes of layouts with one tensor per expert: a stack for each matrix."""

    found = []
    for layout in layouts:
        if layout.experts is not None and "experts.{expert}." in (name := layout.experts.up.name):
            prefix = re.sub(r"experts\.\{expert\}\..*", "switch_mlp.", name)
            matrices = ("gate", "up", "down")
            names = ExpertNames(*(NamedSlice(f"{prefix}{each}_proj.weight", stacked=True) for each in matrices))
            found.append(replace(layout, experts=names))
    return tuple(found)


_GGUF_BLOCK = "blk.{layer}."
_GGUF = (
    names(embedding="token_embd", final_norm="output_norm", lm_head="output")
    | names(
        _GGUF_BLOCK, attn_norm="attn_norm", ffn_norm="ffn_norm", qkv="attn_q attn_k attn_v", o="attn_output",
        q_norm="attn_q_norm", k_norm="attn_k_norm", q="attn_q", q_a="attn_q_a", q_a_norm="attn_q_a_norm",
        q_b="attn_q_b", kv_a="attn_kv_a_mqa", kv_a_norm="attn_kv_a_norm", kv_b="attn_kv_b", router="ffn_gate_inp",
        gate_up="ffn_gate ffn_up", down="ffn_down", shared_gate_up="ffn_gate_shexp ffn_up_shexp",
        up="ffn_up", shared_up="ffn_up_shexp", shared_down="ffn_down_shexp", shared_gate="ffn_gate_inp_shexp",
        attn_gate="attn_gate", sinks="attn_sinks",
        post_attn_norm="post_attention_norm", post_ffn_norm="post_ffw_norm", mixer_in="ssm_in", mixer_conv="ssm_conv1d",
        mixer_select="ssm_x", mixer_step="ssm_dt", mixer_norm="ssm_norm", mixer_step_norm="ssm_dt_norm",
        mixer_write_norm="ssm_b_norm", mixer_read_norm="ssm_c_norm", mixer_out="ssm_out",
    )
    | names(_GGUF_BLOCK, "", mixer_decay="ssm_a", mixer_skip="ssm_d")
    | names(
        _GGUF_BLOCK, ".bias", router_bias="exp_probs_b", qkv_bias="attn_q attn_k attn_v", o_bias="attn_output",
        router_linear_bias="ffn_gate_inp", mixer_conv_bias="ssm_conv1d", mixer_step_bias="ssm_dt",
    )
)  # fmt: skip


def gguf_layouts(
    final_norm: str = "output_norm",
    interleaved: Mapping[str, Interleaved] = MappingProxyType({}),
    gated: bool = True,
    **roles: str,
) -> tuple[Layout, ...]:
    """The ways llama.cpp's converters name tensors: experts in one tensor a matrix, gate and up in one, or, in older
    files, one tensor each.

    `roles` are names of the family that are not those of most; those of `qkv` are of its biases as well.
    """
    dense = _GGUF | names(final_norm=final_norm) | names(_GGUF_BLOCK, **roles)
    if "qkv" in roles:
        dense |= names(_GGUF_BLOCK, ".bias", qkv_bias=roles["qkv"])
    gate, up, down = (f"{_GGUF_BLOCK}ffn_{name}" for name in ("gate", "up", "down"))
    gate_up = f"{_GGUF_BLOCK}ffn_gate_up_exps.weight"
    experts = (
        ExpertNames(*(NamedSlice(f"{name}_exps.weight", stacked=True) for name in (gate, up, down))),
        ExpertNames(
            NamedSlice(gate_up, stacked=True, half=0),
            NamedSlice(gate_up, stacked=True, half=1),
            NamedSlice(f"{down}_exps.weight", stacked=True),
        ),
        ExpertNames(*(NamedSlice(f"{name}.{{expert}}.weight") for name in (gate, up, down))),
    )
    if not gated:
        return (Layout(dense, replace(experts[0], gate=None), interleaved=interleaved),)
    biases = ExpertNames(*(NamedSlice(f"{name}_exps.bias", stacked=True) for name in (gate, up, down)))
    return tuple(Layout(dense, each, interleaved=interleaved, biases=biases) for each in experts)
