"""Mixers with a state, as several families read them: sizes, tensors by role, and the names of those."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Interleaved, Layout, gguf_layouts, names
from moecli.model.spec import Extra, Layer, Part, Recurrent, RecurrentKind

_LAYER = "model.layers.{layer}."
# Of Mamba's steps; the last is how transformers 5 writes infinity. (Its chunked form of Nemotron's goes by
# time_step_min instead, its step by nothing, as do the published kernels.)
NO_LIMIT: tuple[Any, ...] = (None, [0.0, math.inf], [0.0, {"__float__": "Infinity"}])


def gated_delta_net(c: ConfigReader, hidden_size: int, eps: float) -> Recurrent:
    """Gated DeltaNet (arXiv 2412.06464): q, k, v through a short convolution, a matrix of state per value head."""
    heads, key_dim = c.count("linear_num_value_heads", 32), c.count("linear_key_head_dim", 128)
    value_dim, kernel = c.count("linear_value_head_dim", 128), c.count("linear_conv_kernel_dim", 4)
    groups = c.count("linear_num_key_heads", 16)
    if heads % groups:
        raise c.fail("linear_num_key_heads", f"is {groups}, which does not divide the {heads} value heads")
    values = heads * value_dim
    mixed = 2 * groups * key_dim + values
    shapes = {
        "in": (mixed + values, hidden_size),
        "gates": (2 * heads, hidden_size),
        "conv": (mixed, 1, kernel),
        "step_bias": (heads,),
        "decay": (heads,),
        "norm": (value_dim,),
        "out": (hidden_size, values),
    }
    return Recurrent(
        RecurrentKind.DELTA_NET, tensors(shapes), values * key_dim + mixed * (kernel - 1), heads, value_dim, groups,
        key_dim, kernel, norm_eps=eps,
    )  # fmt: skip


def kimi_delta(
    hidden_size: int, *, heads: int, dim: int, kernel: int, eps: float, rank: int = 0, floor: float = 0.0
) -> Recurrent:
    """Kimi Delta Attention (arXiv 2510.26692): a gated delta net with a decay of each row of its heads' states.

    Decays and the output's gate are projected through `rank` numbers each, or at once where that is 0. Unless `floor`
    is 0, no decay's logarithm is less.
    """
    inner = heads * dim
    shapes: dict[str, tuple[int, ...]] = {
        "in": ((3 if rank else 5) * inner, hidden_size),
        "gates": (heads + 2 * rank, hidden_size),
        "conv": (3 * inner, 1, kernel),
        "step_bias": (inner,),
        "decay": (heads,),
        "norm": (dim,),
        "out": (hidden_size, inner),
    }
    shapes |= {"step": (inner, rank), "gate": (inner, rank)} if rank else {}
    return Recurrent(
        RecurrentKind.CHANNEL_DELTA, tensors(shapes), inner * dim + 3 * inner * (kernel - 1), heads, dim, heads, dim,
        kernel, rank, eps, floor,
    )  # fmt: skip


def lightning(hidden_size: int, heads: int, head_dim: int, layer: int, layers: int) -> Recurrent:
    """Lightning attention (arXiv 2401.04658): linear attention whose heads decay by their number and the layer's."""
    inner = heads * head_dim
    shapes = {"in": (4 * inner, hidden_size), "norm": (inner,), "out": (hidden_size, inner)}
    slope = 1 - layer / (layers - 1 + 1e-5) + 1e-5
    return Recurrent(
        RecurrentKind.LIGHTNING, tensors(shapes), inner * head_dim, heads, head_dim, heads, head_dim, kernel=1,
        slope=slope,
    )  # fmt: skip


def mamba2(
    hidden_size: int,
    *,
    heads: int,
    head_dim: int,
    groups: int,
    state_dim: int,
    kernel: int,
    conv_bias: bool,
    eps: float,
    bias: bool = False,
) -> Recurrent:
    """Mamba-2 (arXiv 2405.21060): one decay per head, input and output maps shared within groups."""
    inner = heads * head_dim
    mixed, projected = inner + 2 * groups * state_dim, 2 * inner + 2 * groups * state_dim + heads
    shapes: dict[str, tuple[int, ...]] = {
        "in": (projected, hidden_size),
        "conv": (mixed, 1, kernel),
        "step_bias": (heads,),
        "decay": (heads,),
        "skip": (heads,),
        "norm": (inner,),
        "out": (hidden_size, inner),
    }
    shapes |= {"conv_bias": (mixed,)} if conv_bias else {}
    shapes |= {"in_bias": (projected,), "out_bias": (hidden_size,)} if bias else {}
    return Recurrent(
        RecurrentKind.MAMBA2, tensors(shapes), inner * state_dim + mixed * (kernel - 1), heads, head_dim, groups,
        state_dim, kernel, norm_eps=eps,
    )  # fmt: skip


def mamba(
    hidden_size: int, *, inner: int, state_dim: int, kernel: int, rank: int, conv_bias: bool, bias: bool, eps: float
) -> Recurrent:
    """Mamba-1 (arXiv 2312.00752) with norms on its step, input and output maps."""
    shapes: dict[str, tuple[int, ...]] = {
        "in": (2 * inner, hidden_size),
        "conv": (inner, 1, kernel),
        "select": (rank + 2 * state_dim, inner),
        "step": (inner, rank),
        "step_bias": (inner,),
        "decay": (inner, state_dim),
        "skip": (inner,),
        "step_norm": (rank,),
        "write_norm": (state_dim,),
        "read_norm": (state_dim,),
        "out": (hidden_size, inner),
    }
    shapes |= {"conv_bias": (inner,)} if conv_bias else {}
    shapes |= {"in_bias": (2 * inner,), "out_bias": (hidden_size,)} if bias else {}
    return Recurrent(
        RecurrentKind.MAMBA, tensors(shapes), inner * (state_dim + kernel - 1), inner, 1, 1, state_dim, kernel, rank,
        norm_eps=eps,
    )  # fmt: skip


def short_convolution(hidden_size: int, kernel: int, bias: bool) -> Recurrent:
    """A convolution between two gates, each as wide as the hidden state."""
    shapes: dict[str, tuple[int, ...]] = {
        "in": (3 * hidden_size, hidden_size),
        "conv": (hidden_size, 1, kernel),
        "out": (hidden_size, hidden_size),
    }
    if bias:
        shapes |= {"in_bias": (3 * hidden_size,), "conv_bias": (hidden_size,), "out_bias": (hidden_size,)}
    return Recurrent(
        RecurrentKind.SHORT_CONVOLUTION, tensors(shapes), hidden_size * (kernel - 1), hidden_size, 1, kernel=kernel
    )


def tensors(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Extra, ...]:
    """A mixer's tensors, by their role in it."""
    return tuple(Extra(f"mixer_{role}", shape, Part.MIXER_OTHER) for role, shape in shapes.items())


def delta_net_names(inputs: str, gates: str) -> dict[str, tuple[str, ...]]:
    """Where they lie in Qwen's files; `inputs` and `gates` are called otherwise from one release to another."""
    prefix = f"{_LAYER}linear_attn."
    return (
        names(prefix, mixer_in=inputs, mixer_gates=gates, mixer_conv="conv1d", mixer_norm="norm", mixer_out="out_proj")
        | names(prefix, "", mixer_step_bias="dt_bias", mixer_decay="A_log")
    )  # fmt: skip


def kimi_delta_names(published: bool) -> dict[str, tuple[str, ...]]:
    """Where they lie in the published file, or as transformers 5 holds them in memory."""
    prefix, forget = f"{_LAYER}self_attn.", "" if published else "forget_gate."
    return (
        names(
            prefix, mixer_in="q_proj k_proj v_proj", mixer_gates=f"b_proj {forget}f_a_proj g_a_proj",
            mixer_conv="q_conv1d k_conv1d v_conv1d" if published else "conv1d", mixer_step=f"{forget}f_b_proj",
            mixer_gate="g_b_proj", mixer_norm="o_norm", mixer_out="o_proj",
        )
        | names(prefix, "", mixer_step_bias=f"{forget}dt_bias", mixer_decay=f"{forget}A_log")
    )  # fmt: skip


def lightning_names() -> dict[str, tuple[str, ...]]:
    """Where those of lightning attention lie."""
    return names(f"{_LAYER}self_attn.", mixer_in="qkv_proj output_gate", mixer_norm="norm", mixer_out="out_proj")


# Of each of its heads queries, keys and values lie together.
LIGHTNING_TURNS = {
    f"{_LAYER}self_attn.qkv_proj.weight": Interleaved(
        lambda layer: (0 if layer.recurrent is None else layer.recurrent.head_dim,) * 3, ("mixer_in",) * 3
    )
}


def mamba_names(prefix: str) -> dict[str, tuple[str, ...]]:
    """Where those of Mamba and Mamba-2 lie, behind a prefix with {layer}."""
    return (
        names(
            prefix, mixer_in="in_proj", mixer_conv="conv1d", mixer_norm="norm", mixer_out="out_proj",
            mixer_select="x_proj", mixer_step="dt_proj", mixer_step_norm="dt_layernorm", mixer_write_norm="b_layernorm",
            mixer_read_norm="c_layernorm",
        )
        | names(prefix, ".bias", mixer_in_bias="in_proj", mixer_out_bias="out_proj", mixer_conv_bias="conv1d")
        | names(prefix, "", mixer_decay="A_log", mixer_skip="D")
    )  # fmt: skip


def gated_queries(name: str) -> dict[str, Interleaved]:
    """Each query head of Qwen's gated attention is followed by what its gate is made of."""
    return {name: Interleaved(lambda layer: (layer.attention.head_dim,) * 2, ("qkv", "attn_gate"))}


GATED_QUERIES = gated_queries(f"{_LAYER}self_attn.q_proj.weight")


def delta_net_gates(name: str) -> dict[str, Interleaved]:
    """Rows of Qwen3-Next's gates: those of one key head lie together."""

    def gates(layer: Layer) -> tuple[int, ...]:
        assert layer.recurrent is not None
        return (layer.recurrent.heads // layer.recurrent.groups,) * 2

    return {name: Interleaved(gates, ("mixer_gates",) * 2)}


def delta_net_turns() -> dict[str, Interleaved]:
    """Rows of Qwen3-Next's two input projections: those of one key head and its value heads lie together."""

    def inputs(layer: Layer) -> tuple[int, ...]:
        assert layer.recurrent is not None
        values = layer.recurrent.inner // layer.recurrent.groups
        return layer.recurrent.state_dim, layer.recurrent.state_dim, values, values

    prefix = f"{_LAYER}linear_attn."
    return {f"{prefix}in_proj_qkvz.weight": Interleaved(inputs, ("mixer_in",) * 4)} | delta_net_gates(
        f"{prefix}in_proj_ba.weight"
    )


def gguf_delta_net(gates: str, turns: Mapping[str, Interleaved] = MappingProxyType({})) -> tuple[Layout, ...]:
    """How llama.cpp's converters name Qwen's hybrids; `gates`, and what takes turns, are each release's own."""
    return gguf_layouts(
        interleaved={**gated_queries("blk.{layer}.attn_q.weight"), **turns}, mixer_gates=gates,
        mixer_in="attn_qkv attn_gate", attn_gate="attn_q", ffn_norm="post_attention_norm",
    )  # fmt: skip
