"""The structures of c/native.h as ctypes sees them, and whether a library has the same ones."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from ctypes import c_float, c_int32, c_int64, c_void_p

Layout = Mapping[tuple[str, str], tuple[int, int]]  # structure, field (or "" for the whole) -> offset, size in bytes


class ThreadPool(ctypes.Structure):
    """torch's OpenMP runtime, by two of its entry points, and how many threads to take."""

    _fields_ = (("parallel", c_void_p), ("barrier", c_void_p), ("threads", c_int32))


class Tokens(ctypes.Structure):
    """Dense rows of numbers, one per token."""

    _fields_ = (("data", c_void_p), ("type", c_int32), ("count", c_int64), ("columns", c_int64))


class Linear(ctypes.Structure):
    """Tokens times one packed matrix."""

    _fields_ = (
        ("pool", ThreadPool),
        ("format", c_int32),
        ("input", Tokens),
        ("packed", c_void_p),
        ("rows", c_int64),
        ("output", c_void_p),
    )


class FeedForward(ctypes.Structure):
    """Tokens through experts, each of three packed matrices, or through gate and up of one."""

    _fields_ = (
        ("pool", ThreadPool),
        ("format", c_int32),
        ("activation", c_int32),
        ("stacked", c_int32),
        ("bias_type", c_int32),
        ("input", Tokens),
        ("matrices", c_void_p),
        ("biases", c_void_p),
        ("experts", c_int64),
        ("intermediate_size", c_int64),
        ("output", c_void_p),
    )


class WeightedSum(ctypes.Structure):
    """Tokens, the experts that some of them take, and the sums that these are added to."""

    _fields_ = (
        ("each", FeedForward),
        ("counts", c_void_p),
        ("rows", c_void_p),
        ("weights", c_void_p),
        ("at_once", c_int64),
        ("sums", c_void_p),
    )


class Pack(ctypes.Structure):
    """A plain matrix, and where its packed bytes go."""

    _fields_ = (
        ("pool", ThreadPool),
        ("format", c_int32),
        ("type", c_int32),
        ("weights", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("row_stride", c_int64),
        ("column_stride", c_int64),
        ("packed", c_void_p),
    )


class Repack(ctypes.Structure):
    """A matrix as published blocks, and where its packed bytes go."""

    _fields_ = (
        ("format", c_int32),
        ("paired", c_int32),
        ("indices", c_void_p),
        ("scales", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("row_stride", c_int64),
        ("group_stride", c_int64),
        ("scale_row_stride", c_int64),
        ("scale_group_stride", c_int64),
        ("packed", c_void_p),
    )


class Sublayer(ctypes.Structure):
    """What attention and feed-forward have in common: norms, residual, hidden state."""

    _fields_ = (
        ("pool", ThreadPool),
        ("type", c_int32),
        ("format", c_int32),
        ("norm", c_int32),
        ("eps", c_float),
        ("multiplier", c_float),
        ("scale", c_float),
        ("kept", c_float),
        ("before", c_void_p),
        ("before_bias", c_void_p),
        ("after", c_void_p),
        ("x", c_void_p),
        ("hidden_size", c_int64),
        ("tokens", c_int64),
    )


class Place(ctypes.Structure):
    """Where a token stands: its position, and the rows of a layer's cache that it sees."""

    _fields_ = (
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("position", c_int64),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("rows", c_int64),
        ("first", c_int64),
        ("last", c_int64),
        ("query_scale", c_float),
    )


class Attention(ctypes.Structure):
    """Grouped-query attention of a few tokens, and where they stand in their caches."""

    _fields_ = (
        ("sublayer", Sublayer),
        ("qkv", c_void_p),
        ("qkv_bias", c_void_p),
        ("output", c_void_p),
        ("output_bias", c_void_p),
        ("gate", c_void_p),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("value_dim", c_int64),
        ("rotary_dim", c_int64),
        ("gate_width", c_int64),
        ("qk_norm", c_int32),
        ("interleaved", c_int32),
        ("keys_as_values", c_int32),
        ("value_norm", c_int32),
        ("gate_kind", c_int32),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("sinks", c_void_p),
        ("clip", c_float),
        ("softcap", c_float),
        ("scale", c_float),
        ("value_scale", c_float),
        ("places", c_void_p),
    )


class LatentAttention(ctypes.Structure):
    """Multi-head latent attention of a few tokens, and where they stand in their caches."""

    _fields_ = (
        ("sublayer", Sublayer),
        ("query", c_void_p),
        ("query_down", c_void_p),
        ("query_down_bias", c_void_p),
        ("query_norm", c_void_p),
        ("latent_down", c_void_p),
        ("latent_down_bias", c_void_p),
        ("latent_norm", c_void_p),
        ("expansion", c_void_p),
        ("output", c_void_p),
        ("output_bias", c_void_p),
        ("gate", c_void_p),
        ("heads", c_int64),
        ("query_rank", c_int64),
        ("rank", c_int64),
        ("nope_dim", c_int64),
        ("rotary_dim", c_int64),
        ("value_dim", c_int64),
        ("gate_width", c_int64),
        ("interleaved", c_int32),
        ("norm_eps", c_float),
        ("scale", c_float),
        ("places", c_void_p),
    )


class PromptAttention(ctypes.Structure):
    """Attention of many tokens' queries over keys and values in memory."""

    _fields_ = (
        ("pool", ThreadPool),
        ("type", c_int32),
        ("queries", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("expansion", c_void_p),
        ("sinks", c_void_p),
        ("output", c_void_p),
        ("tokens", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("value_dim", c_int64),
        ("rows", c_int64),
        ("query_stride", c_int64),
        ("rank", c_int64),
        ("nope_dim", c_int64),
        ("start", c_int64),
        ("first", c_int64),
        ("window", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
    )


class History(ctypes.Structure):
    """What one recurrent layer remembers of one text."""

    _fields_ = (
        ("rows", c_void_p),
        ("state", c_void_p),
        ("record", c_void_p),
        ("kept", c_int64),
        ("commits", c_int64),
    )


class Recurrent(ctypes.Structure):
    """A mixer with a state, of a few tokens of several texts, or of many of one that are projected already."""

    _fields_ = (
        ("sublayer", Sublayer),
        ("kind", c_int32),
        *((name, c_void_p) for name in ("in", "in_bias", "gates", "select", "step", "gate", "out", "out_bias")),
        *((name, c_void_p) for name in ("conv", "conv_bias", "decay", "step_bias", "skip", "norm")),
        *((name, c_void_p) for name in ("step_norm", "write_norm", "read_norm")),
        *((name, c_int64) for name in ("heads", "head_dim", "groups", "state_dim", "kernel", "rank")),
        ("norm_eps", c_float),
        ("floor", c_float),
        ("histories", c_void_p),
        ("texts", c_int64),
        *((name, c_void_p) for name in ("projected", "gated", "mixed")),
    )


class Router(ctypes.Structure):
    """How experts are selected and weighted."""

    _fields_ = (
        ("weights", c_void_p),
        ("linear_bias", c_void_p),
        ("bias", c_void_p),
        ("input_scale", c_void_p),
        ("expert_scale", c_void_p),
        ("experts", c_int64),
        ("top_k", c_int64),
        ("n_group", c_int64),
        ("topk_group", c_int64),
        ("scoring", c_int32),
        ("group_score", c_int32),
        ("norm_power", c_float),
        ("norm_epsilon", c_float),
        ("norm_floor", c_float),
        ("scaling", c_float),
        ("softcap", c_float),
        ("jitter", c_float),
    )


class Moe(ctypes.Structure):
    """Router, routed experts and shared expert of a few tokens, and what is told of them."""

    _fields_ = (
        ("sublayer", Sublayer),
        ("router", Router),
        ("matrices", c_void_p),
        ("biases", c_void_p),
        ("intermediate_size", c_int64),
        ("shared_intermediate_size", c_int64),
        ("activation", c_int32),
        ("shared_activation", c_int32),
        ("reads_input", c_int32),
        ("shared_scale", c_float),
        ("shared_gate_up", c_void_p),
        ("shared_down", c_void_p),
        ("shared_up", c_void_p),
        ("shared_gate", c_void_p),
        ("shared_before", c_void_p),
        ("shared_after", c_void_p),
        ("routed_after", c_void_p),
        ("normed", c_void_p),
        ("logits", c_void_p),
        ("topk_weights", c_void_p),
        ("outputs", c_void_p),
        ("topk_ids", c_void_p),
    )


class Block(ctypes.Structure):
    """The addresses of sublayers, any of which may be missing."""

    _fields_ = tuple((name, c_void_p) for name in ("attention", "latent_attention", "recurrent", "moe"))


class DecodeStep(ctypes.Structure):
    """A few tokens' hidden states, and the blocks they go through."""

    _fields_ = (
        ("x", c_void_p),
        ("blocks", c_void_p),
        ("count", c_int64),
        ("tokens", c_int64),
        ("threads", c_int32),
    )


STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "thread_pool": ThreadPool,
    "tokens": Tokens,
    "linear": Linear,
    "feed_forward": FeedForward,
    "weighted_sum": WeightedSum,
    "pack": Pack,
    "repack": Repack,
    "sublayer": Sublayer,
    "place": Place,
    "attention": Attention,
    "latent_attention": LatentAttention,
    "prompt_attention": PromptAttention,
    "history": History,
    "recurrent": Recurrent,
    "router": Router,
    "moe": Moe,
    "block": Block,
    "decode_step": DecodeStep,
}


class _Row(ctypes.Structure):
    """One answer of moecli_layout, and so the one structure that no table checks."""

    _fields_ = (("structure", ctypes.c_char_p), ("field", ctypes.c_char_p), ("offset", c_int64), ("size", c_int64))


def layout() -> Layout:
    """Where the structures of this module have their fields."""
    return dict(_fields())


def layout_of(library: ctypes.CDLL) -> Layout:
    """Where a library has them. AttributeError if it does not tell."""
    row_at = library["moecli_layout"]
    row_at.argtypes, row_at.restype = (ctypes.c_int,), ctypes.POINTER(_Row)
    found, index = {}, 0
    while row := row_at(index):
        found[row[0].structure.decode(), row[0].field.decode()] = row[0].offset, row[0].size
        index += 1
    return found


def difference(theirs: Layout) -> str | None:
    """The first structure or field that a library has elsewhere than `layout`, as text; None if all are the same."""
    ours = layout()
    for structure, field in [*ours, *theirs]:
        there, here = theirs.get((structure, field)), ours.get((structure, field))
        if there != here:
            name = f"{structure}.{field}" if field else structure
            return f"{name} {f'has {_bytes(there)}' if there else 'is missing'}, not {_bytes(here)}"
    return None


def _fields() -> Iterator[tuple[tuple[str, str], tuple[int, int]]]:
    for name, structure in STRUCTURES.items():
        yield (name, ""), (0, ctypes.sizeof(structure))
        for field, *_ in structure._fields_:
            place = getattr(structure, field)
            yield (name, field), (place.offset, place.size)


def _bytes(place: tuple[int, int] | None) -> str:
    return f"{place[1]} bytes at {place[0]}" if place else "missing"
