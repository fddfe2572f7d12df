"""One token through blocks in one native call: attention and mixtures, in place."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from moecli.formats import bytes_for
from moecli.kernels.choice import chosen
from moecli.kernels.library import Team, loaded
from moecli.kernels.native import ACTIVATIONS, FORMATS, NUMBERS, address
from moecli.kernels.products import Matrix, Packed
from moecli.model.spec import FeedForward, GroupedQuery, GroupScore, Mixture, NormKind, QkNorm, Router, Scoring

_NORMS = {NormKind.RMS: 0, NormKind.LAYER: 1}
_QK_NORMS = {QkNorm.NONE: 0, QkNorm.FULL: 1, QkNorm.HEAD: 2}
_SCORINGS = {Scoring.SOFTMAX: 0, Scoring.SIGMOID: 1, Scoring.SOFTMAX_OF_CHOSEN: 2}
_GROUP_SCORES = {GroupScore.MAX: 0, GroupScore.TOP2_SUM: 1}
_STRIP = 16  # rows that lie together: where a stacked matrix may be cut


class Weights(Protocol):
    """One layer's, by role."""

    def matrix(self, role: str) -> Matrix: ...

    def get(self, role: str) -> Tensor | None: ...


class _Half(ctypes.Structure):
    _fields_ = (
        ("team", Team),
        ("type", c_int32),
        ("format", c_int32),
        ("norm", c_int32),
        ("eps", c_float),
        ("multiplier", c_float),
        ("before", c_void_p),
        ("after", c_void_p),
        ("x", c_void_p),
        ("width", c_int64),
    )


class _Attention(ctypes.Structure):
    _fields_ = (
        ("half", _Half),
        ("qkv", c_void_p),
        ("qkv_bias", c_void_p),
        ("output", c_void_p),
        ("output_bias", c_void_p),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("qk_norm", c_int32),
        ("interleaved", c_int32),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("clip", c_float),
        ("softcap", c_float),
        ("scale", c_float),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("turned", c_int64),
        ("position", c_int64),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("rows", c_int64),
        ("first", c_int64),
        ("last", c_int64),
    )


class _Router(ctypes.Structure):
    _fields_ = (
        ("weights", c_void_p),
        ("bias", c_void_p),
        ("experts", c_int64),
        ("active", c_int64),
        ("groups", c_int64),
        ("kept_groups", c_int64),
        ("scoring", c_int32),
        ("group_score", c_int32),
        ("norm_power", c_float),
        ("norm_epsilon", c_float),
        ("scaling", c_float),
    )


class _Mixture(ctypes.Structure):
    _fields_ = (
        ("half", _Half),
        ("router", _Router),
        ("matrices", c_void_p),
        ("inner", c_int64),
        ("shared_inner", c_int64),
        ("activation", c_int32),
        ("shared_activation", c_int32),
        ("shared", c_void_p * 3),
        ("shared_gate", c_void_p),
        ("normed", c_void_p),
        ("logits", c_void_p),
        ("weights", c_void_p),
        ("outputs", c_void_p),
        ("chosen", c_void_p),
    )


class _Pass(ctypes.Structure):
    _fields_ = (("x", c_void_p), ("blocks", c_void_p), ("count", c_int64), ("threads", c_int32))


@dataclass(frozen=True, slots=True)
class Half:
    """What surrounds either half of a block: x += multiplier * after(something(before(x)))."""

    packed: str  # the format of matrices
    dtype: torch.dtype  # of x and of all that is not packed
    norm: NormKind
    eps: float
    multiplier: float
    before: Tensor  # [D]
    after: Tensor | None


def serves(half: Half, matrices: Iterable[Matrix]) -> bool:
    """Whether there is a native call for such weights."""
    plain = half.dtype in (torch.float32, torch.bfloat16) and half.before.device.type == "cpu"
    return plain and all(
        isinstance(each, Packed) and each.dtype == half.packed and chosen(each.dtype, "cpu") == "native"
        for each in matrices
    )


class TokenAttention:
    """Norm, projections, rotation, cache, attention, output, residual."""

    def __init__(self, half: Half, spec: GroupedQuery, weights: Weights) -> None:
        self.call = _Attention(
            half=_half(half),
            qkv=_packed(weights.matrix("qkv")),
            qkv_bias=_plain(weights.get("qkv_bias"), half.dtype),
            output=_packed(weights.matrix("o")),
            output_bias=_plain(weights.get("o_bias"), half.dtype),
            heads=spec.heads,
            kv_heads=spec.kv_heads,
            head_dim=spec.head_dim,
            qk_norm=_QK_NORMS[spec.qk_norm],
            interleaved=spec.rope.interleaved,
            q_norm=_plain(weights.get("q_norm"), half.dtype),
            k_norm=_plain(weights.get("k_norm"), half.dtype),
            clip=spec.clip or 0,
            softcap=spec.softcap or 0,
            scale=spec.scale,
            turned=spec.rope.dims,
        )
        self._held = weights  # as long as their addresses

    def stand(self, tables: tuple[Tensor, Tensor], position: int, cache: Sequence[Tensor], seen: range) -> None:
        """Where the next token is. `tables`: cosines and sines by position; `cache`: keys, values [K, rows, d].

        Its own keys and values go to the last row of `seen`, and it sees all of them.
        """
        call, (cosines, sines), (keys, values) = self.call, tables, cache
        call.cosines, call.sines, call.position = cosines.data_ptr(), sines.data_ptr(), position
        call.keys, call.values, call.rows = keys.data_ptr(), values.data_ptr(), keys.shape[1]
        call.first, call.last = seen.start, seen.stop - 1


class TokenMixture:
    """Norm, router, experts, shared expert, residual; a plain feed-forward block is a shared expert alone.

    `experts` has the addresses of gate, up and down of each, int64 [E, 3]. Without it a pass cannot hold the mixture:
    it takes `route`, whoever computes the experts, and `conclude`. The bits are the same.
    """

    def __init__(self, half: Half, ffn: FeedForward | Mixture, weights: Weights, experts: Tensor | None) -> None:
        mixture = ffn if isinstance(ffn, Mixture) else None
        always = ffn.shared if isinstance(ffn, Mixture) else ffn
        active, all_of_them = (mixture.router.top_k, mixture.router.experts) if mixture else (0, 0)
        self.normed = torch.empty(1, half.before.shape[0])
        self.logits = torch.empty(1, all_of_them)
        self.weights = torch.empty(1, active)  # of the chosen experts, best first
        self.chosen = torch.empty(1, active, dtype=torch.int64)
        self.outputs = torch.empty(active + 1, half.before.shape[0])  # of the chosen experts, and room for their sum
        self.call = call = _Mixture(
            half=_half(half),
            normed=self.normed.data_ptr(),
            logits=self.logits.data_ptr(),
            weights=self.weights.data_ptr(),
            chosen=self.chosen.data_ptr(),
            outputs=self.outputs.data_ptr(),
            matrices=None if experts is None else experts.data_ptr(),
        )
        self.still = experts is not None or mixture is None
        if mixture:
            call.router = _router(mixture.router, weights)
            call.inner, call.activation = mixture.expert.intermediate_size, ACTIVATIONS[mixture.expert.activation]
        if always:
            prefix = "shared_" if mixture else ""
            gate_up, down = (_packed(weights.matrix(prefix + role)) for role in ("gate_up", "down"))
            up = gate_up + bytes_for(half.packed, (always.intermediate_size, half.before.shape[0]))
            call.shared_inner, call.shared_activation = always.intermediate_size, ACTIVATIONS[always.activation]
            call.shared = (c_void_p * 3)(gate_up, up, down)
            call.shared_gate = _plain(weights.get("shared_gate"), half.dtype)
        self._held = weights, experts

    def route(self, x: Tensor) -> None:
        """Fill `normed`, `logits`, `chosen` and `weights`."""
        self._step("route", x)

    def conclude(self, x: Tensor) -> None:
        """Add to x what `outputs` hold for the chosen experts."""
        self._step("conclude", x)

    def _step(self, function: str, x: Tensor) -> None:
        library, half = loaded(), self.call.half
        half.team.threads, half.x = torch.get_num_threads(), x.data_ptr()
        library.call(function, self.call)


class TokenPass:
    """Some blocks, or halves of one, in one native call."""

    def __init__(self, blocks: Sequence[tuple[TokenAttention | None, TokenMixture | None]]) -> None:
        self._halves = [half for block in blocks for half in block]
        places = [None if half is None else ctypes.addressof(half.call) for half in self._halves]
        self._places = (c_void_p * len(places))(*places)
        self._call = _Pass(blocks=ctypes.addressof(self._places), count=len(blocks))

    def __call__(self, x: Tensor) -> Tensor:
        """x [1, D], changed in place."""
        self._call.x, self._call.threads = x.data_ptr(), torch.get_num_threads()
        loaded().call("pass", self._call)
        return x


def can_cut(width: int) -> bool:
    """Whether the packed gate and up of `width` rows each can be told apart where they are stacked."""
    return width % _STRIP == 0


def _half(half: Half) -> _Half:
    return _Half(
        team=loaded().team(),
        type=NUMBERS[half.dtype],
        format=FORMATS[half.packed],
        norm=_NORMS[half.norm],
        eps=half.eps,
        multiplier=half.multiplier,
        before=_plain(half.before, half.dtype),
        after=_plain(half.after, half.dtype),
        width=half.before.shape[0],
    )


def _router(router: Router, weights: Weights) -> _Router:
    return _Router(
        weights=_plain(weights.get("router"), torch.float32),
        bias=_plain(weights.get("router_bias"), torch.float32),
        experts=router.experts,
        active=router.top_k,
        groups=router.n_group,
        kept_groups=router.topk_group,
        scoring=_SCORINGS[router.scoring],
        group_score=_GROUP_SCORES[router.group_score],
        norm_power=router.norm_power or 0,
        norm_epsilon=router.norm_epsilon,
        scaling=router.scaling,
    )


def _plain(tensor: Tensor | None, dtype: torch.dtype) -> int | None:
    """Where it lies."""
    if tensor is None:
        return None
    assert tensor.dtype is dtype and tensor.is_contiguous()
    return tensor.data_ptr()


def _packed(matrix: Matrix) -> int:
    assert isinstance(matrix, Packed)
    return address(matrix.data, bytes_for(matrix.dtype, matrix.shape))
