"""The native decode step: a few tokens through attention and mixtures of experts of many blocks, in place."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from moecli.formats import bytes_for
from moecli.kernels import abi
from moecli.kernels.blocking import MAX_TOKENS
from moecli.kernels.choice import chosen
from moecli.kernels.library import loaded
from moecli.kernels.linear import Matrix, format_of, native_bytes
from moecli.kernels.native import ACTIVATIONS, FORMATS, NUMBERS, address
from moecli.kernels.recurrent import NativeMixer, Past
from moecli.model.spec import (
    MLA,
    FeedForward,
    Gate,
    GroupedQuery,
    GroupScore,
    Layer,
    Mixture,
    NormKind,
    QkNorm,
    Router,
    Scoring,
)
from moecli.model.tensors import EXPERT_MATRICES

# enum norm, qk_norm, gate, scoring and group_score of c/native.h
_NORMS = {NormKind.RMS: 0, NormKind.LAYER: 1, NormKind.ZERO_CENTRED: 2}
_QK_NORMS = {QkNorm.NONE: 0, QkNorm.FULL: 1, QkNorm.HEAD: 2, QkNorm.ROTATED_HEAD: 3, QkNorm.UNWEIGHTED: 3}
_GATES = {Gate.SIGMOID: 0, Gate.SOFTPLUS: 1}
_SCORINGS = {
    Scoring.SOFTMAX: 0,
    Scoring.SIGMOID: 1,
    Scoring.SOFTMAX_OF_CHOSEN: 2,
    Scoring.SIGMOID_INPUT: 3,
    Scoring.SPARSEMIXER: 4,
}
_GROUP_SCORES = {GroupScore.MAX: 0, GroupScore.TOP2_SUM: 1}


class Weights(Protocol):
    """The weights of one layer, by role: matrices to multiply with, and plain tensors that may be missing."""

    def matrix(self, role: str) -> Matrix: ...

    def get(self, role: str) -> Tensor | None: ...


@dataclass(frozen=True, slots=True)
class Sublayer:
    """What both of a block have in common: x = scale * (x + multiplier * after(something(before(x)))).

    Unless `kept` is 0, kept * before(x) stands for the x that is added to.
    """

    format: str  # of matrices
    dtype: torch.dtype  # of x and of all that is no matrix
    norm: NormKind
    eps: float
    multiplier: float
    before: Tensor  # [D]
    after: Tensor | None
    before_bias: Tensor | None = None
    scale: Tensor | None = None  # [1]
    kept: float = 0.0


def serves(sublayer: Sublayer, matrices: Iterable[Matrix]) -> bool:
    """Whether a sublayer with these matrices can be a native call: all on the CPU and in its one format."""
    plain = sublayer.dtype in NUMBERS and sublayer.before.device.type == "cpu"
    native = plain and chosen(sublayer.format, "cpu") == "native"
    return native and native_bytes(sublayer.format, matrices) is not None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a token goes: its position, its layer's cache, and the rows of it that the token sees.

    `cache` is keys [K, rows, d] and values [K, rows, w], or latents [1, rows, kv_rank + rope_dim]. The token's own go
    to the last row of `seen`. Its queries are multiplied by `query_scale`.
    """

    position: int
    cache: Sequence[Tensor]
    seen: range
    query_scale: float = 1.0


class _CachedAttention:
    """What attentions have in common: each token's place in a cache."""

    call: abi.Attention | abi.LatentAttention

    def reserve(self, tables: tuple[Tensor, Tensor], places: Sequence[Place]) -> None:
        """Say where the next tokens go. `tables` are the cosines and sines of all positions [P, rotary_dim], empty
        where nothing turns.
        """
        cosines, sines = (table.data_ptr() if table.numel() else None for table in tables)
        self._places = (abi.Place * len(places))(
            *(
                abi.Place(
                    cosines=cosines,
                    sines=sines,
                    position=place.position,
                    keys=place.cache[0].data_ptr(),
                    values=place.cache[-1].data_ptr(),
                    rows=place.cache[0].shape[1],
                    first=place.seen.start,
                    last=place.seen.stop - 1,
                    query_scale=place.query_scale,
                )
                for place in places
            )
        )
        self.call.places = ctypes.addressof(self._places)


class AttentionSublayer(_CachedAttention):
    """Grouped-query attention of a few tokens: norm, projections, rotation, cache, attention, output, residual."""

    def __init__(self, sublayer: Sublayer, spec: GroupedQuery, weights: Weights) -> None:
        self.call = abi.Attention(
            sublayer=_sublayer(sublayer),
            qkv=_address_of(weights.matrix(spec.projection)),
            qkv_bias=_plain(weights.get(f"{spec.projection}_bias"), sublayer.dtype),
            output=_address_of(weights.matrix("o")),
            output_bias=_plain(weights.get("o_bias"), sublayer.dtype),
            gate=_address_of(weights.matrix("attn_gate")) if spec.gate_width else None,
            gate_width=spec.gate_width,
            gate_kind=_GATES[spec.gate],
            heads=spec.heads,
            kv_heads=spec.kv_heads,
            head_dim=spec.head_dim,
            value_dim=spec.value_head_dim,
            keys_as_values=spec.keys_as_values,
            value_norm=spec.value_norm,
            value_scale=spec.value_scale,
            qk_norm=_QK_NORMS[spec.qk_norm],
            interleaved=spec.rope.interleaved,
            q_norm=_plain(weights.get("q_norm"), sublayer.dtype),
            k_norm=_plain(weights.get("k_norm"), sublayer.dtype),
            sinks=_plain(weights.get("sinks"), sublayer.dtype),
            clip=spec.clip or 0,
            softcap=spec.softcap or 0,
            scale=spec.scale,
            rotary_dim=spec.rope.dims,
        )
        self._held = weights  # as long as their addresses


class LatentSublayer(_CachedAttention):
    """Latent attention of a few tokens: norm, projections, rotation, cache, attention, output, residual."""

    def __init__(self, sublayer: Sublayer, spec: MLA, weights: Weights) -> None:
        dtype = sublayer.dtype
        self.call = abi.LatentAttention(
            sublayer=_sublayer(sublayer),
            query=_address_of(weights.matrix("q" if spec.query_rank is None else "q_b")),
            query_down=_plain(weights.get("q_a"), dtype),
            query_down_bias=_plain(weights.get("q_a_bias"), dtype),
            query_norm=_plain(weights.get("q_a_norm"), dtype),
            latent_down=_plain(weights.get("kv_a"), dtype),
            latent_down_bias=_plain(weights.get("kv_a_bias"), dtype),
            latent_norm=_plain(weights.get("kv_a_norm"), dtype),
            expansion=_plain(weights.get("kv_b"), dtype),
            output=_address_of(weights.matrix("o")),
            output_bias=_plain(weights.get("o_bias"), dtype),
            gate=_address_of(weights.matrix("attn_gate")) if spec.gate_width else None,
            gate_width=spec.gate_width,
            heads=spec.heads,
            query_rank=spec.query_rank or 0,
            rank=spec.kv_rank,
            nope_dim=spec.nope_dim,
            rotary_dim=spec.rope_dim,
            value_dim=spec.value_dim,
            interleaved=spec.rope.interleaved,
            norm_eps=spec.norm_eps,
            scale=spec.scale,
        )
        self._held = weights  # as long as their addresses


class RecurrentSublayer:
    """A mixer with a state of a few tokens: norm, projections, convolution, recurrence, gate, output, residual."""

    def __init__(self, sublayer: Sublayer, mixer: NativeMixer, weights: Weights) -> None:
        self._mixer, self.call = mixer, mixer.call
        self.call.sublayer = _sublayer(sublayer)
        for name in ("in", "out"):
            setattr(self.call, name, _address_of(weights.matrix(f"mixer_{name}")))
        self._held = weights  # as long as their addresses

    def reserve(self, texts: Sequence[Past]) -> None:
        """Say what the layer remembers of each text that the next tokens are of."""
        self._mixer.remember(texts)


class MoeSublayer:
    """Mixture of experts of a few tokens: norm, router, routed experts, shared expert, residual.

    A plain feed-forward is a shared expert without routed ones, and a block beside a mixture is one with a norm of its
    own. `experts` has the addresses of gate, up and down of
    every expert, int64 [E, 3]. Without them the sublayer is not `resident` and cannot be part of a `DecodeStepCall`:
    it takes `route`, somebody who computes the experts into `outputs`, and `combine`. The bits are the same. The first
    rows of `normed` [., D], `logits` [., E], `topk_ids` and `topk_weights` [., A], best first, are of the last tokens;
    `outputs` [., D] has A rows for each, and room for their sums.
    """

    def __init__(self, sublayer: Sublayer, layer: Layer, weights: Weights, experts: Tensor | None) -> None:
        mixture = layer.ffn if isinstance(layer.ffn, Mixture) else None
        shared, prefix = always_on(layer)
        dtype = sublayer.dtype
        top_k, count = (mixture.router.top_k, mixture.router.experts) if mixture else (0, 0)
        hidden_size = sublayer.before.shape[0]
        self.normed = torch.empty(MAX_TOKENS, hidden_size)
        self.logits = torch.empty(MAX_TOKENS, count)
        self.topk_weights = torch.empty(MAX_TOKENS, top_k)
        self.topk_ids = torch.empty(MAX_TOKENS, top_k, dtype=torch.int64)
        self.outputs = torch.empty(MAX_TOKENS * (top_k + 1), hidden_size)  # and room for their sums
        self.call = call = abi.Moe(
            sublayer=_sublayer(sublayer),
            normed=self.normed.data_ptr(),
            logits=self.logits.data_ptr(),
            topk_weights=self.topk_weights.data_ptr(),
            topk_ids=self.topk_ids.data_ptr(),
            outputs=self.outputs.data_ptr(),
            matrices=None if experts is None else experts.data_ptr(),
            reads_input=layer.ffn_reads_input,
            shared_scale=mixture.shared_scale if mixture else 1,
        )
        self.resident = experts is not None or mixture is None
        biases = None
        if mixture:
            scale = weights.get("router_scale")
            self._input_scale = None if scale is None else scale * hidden_size**-0.5
            if mixture.expert.bias:
                biases = _bias_addresses(weights, mixture, sublayer.dtype)
                call.biases = biases.data_ptr()
            call.router = _router(mixture.router, weights)
            call.router.input_scale = _plain(self._input_scale, torch.float32)
            call.intermediate_size = mixture.expert.intermediate_size
            call.activation = ACTIVATIONS[mixture.expert.activation]
        if shared:
            call.shared_intermediate_size = shared.intermediate_size
            call.shared_activation = ACTIVATIONS[shared.activation]
            inner = "shared_gate_up" if shared.gated else "shared_up"
            setattr(call, inner, _address_of(weights.matrix(prefix + inner.removeprefix("shared_"))))
            call.shared_down = _address_of(weights.matrix(f"{prefix}down"))
            call.shared_gate = _plain(weights.get("shared_gate"), dtype)
        if layer.parallel is not None:
            call.shared_before = _plain(weights.get("parallel_norm"), dtype)
        if layer.parallel_norms:
            call.shared_after = _plain(weights.get("post_parallel_norm"), dtype)
            call.routed_after = _plain(weights.get("post_mixture_norm"), dtype)
        self._held = weights, experts, biases

    def route(self, x: Tensor) -> None:
        """Fill `normed`, `logits`, `topk_ids` and `topk_weights` from the hidden states x [T, D]."""
        self._run("route", x)

    def combine(self, x: Tensor) -> None:
        """Add to the hidden states x [T, D], in place, weighted `outputs` and what the shared expert makes of them."""
        self._run("combine", x)

    def _run(self, function: str, x: Tensor) -> None:
        sublayer = self.call.sublayer
        sublayer.pool.threads, sublayer.x, sublayer.tokens = torch.get_num_threads(), x.data_ptr(), len(x)
        loaded().call(function, self.call)


class DecodeStepCall:
    """A few tokens through blocks, or sublayers of one, in a single native call."""

    def __init__(self, blocks: Sequence[tuple[Mixer | None, MoeSublayer | None]]) -> None:
        self._held = blocks  # as long as their addresses
        self._blocks = (abi.Block * len(blocks))(*(_block(*block) for block in blocks))
        self._call = abi.DecodeStep(blocks=ctypes.addressof(self._blocks), count=len(blocks))

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, D], at most MAX_TOKENS, changed in place. Every mixer must know their places by `reserve`."""
        assert x.is_contiguous() and len(x) <= MAX_TOKENS
        self._call.x, self._call.tokens, self._call.threads = x.data_ptr(), len(x), torch.get_num_threads()
        loaded().call("decode_step", self._call)
        return x


def always_on(layer: Layer) -> tuple[FeedForward | None, str]:
    """What every token of a layer goes through beside routed experts, and how its weights' roles begin."""
    if not isinstance(layer.ffn, Mixture):
        return layer.ffn, ""
    return (layer.ffn.shared, "shared_") if layer.parallel is None else (layer.parallel, "parallel_")


Mixer = AttentionSublayer | LatentSublayer | RecurrentSublayer
_FIELDS: dict[type[Mixer], str] = {
    AttentionSublayer: "attention", LatentSublayer: "latent_attention", RecurrentSublayer: "recurrent",
}  # fmt: skip


def _block(mixer: Mixer | None, moe: MoeSublayer | None) -> abi.Block:
    block = abi.Block()
    if mixer is not None:
        setattr(block, _FIELDS[type(mixer)], ctypes.addressof(mixer.call))
    if moe is not None:
        block.moe = ctypes.addressof(moe.call)
    return block


def _sublayer(sublayer: Sublayer) -> abi.Sublayer:
    return abi.Sublayer(
        pool=loaded().thread_pool(),
        type=NUMBERS[sublayer.dtype],
        format=FORMATS[sublayer.format],
        norm=_NORMS[sublayer.norm],
        eps=sublayer.eps,
        multiplier=sublayer.multiplier,
        scale=1 if sublayer.scale is None else float(sublayer.scale),
        kept=sublayer.kept,
        before=_plain(sublayer.before, sublayer.dtype),
        before_bias=_plain(sublayer.before_bias, sublayer.dtype),
        after=_plain(sublayer.after, sublayer.dtype),
        hidden_size=sublayer.before.shape[0],
    )


def _router(router: Router, weights: Weights) -> abi.Router:
    return abi.Router(
        weights=_plain(weights.get("router"), torch.float32),
        linear_bias=_plain(weights.get("router_linear_bias"), torch.float32),
        bias=_plain(weights.get("router_bias"), torch.float32),
        expert_scale=_plain(weights.get("router_expert_scale"), torch.float32),
        experts=router.experts,
        top_k=router.top_k,
        n_group=router.n_group,
        topk_group=router.topk_group,
        scoring=_SCORINGS[router.scoring],
        group_score=_GROUP_SCORES[router.group_score],
        norm_power=router.norm_power or 0,
        norm_epsilon=router.norm_epsilon,
        norm_floor=router.norm_floor,
        scaling=router.scaling,
        softcap=router.softcap or 0,
        jitter=router.jitter,
    )


def _bias_addresses(weights: Weights, mixture: Mixture, dtype: torch.dtype) -> Tensor:
    """Where the biases of gate, up and down of every expert lie, int64 [E, 3]; 0 where there is no gate."""
    every = torch.arange(mixture.router.experts)
    found = torch.zeros(len(every), len(EXPERT_MATRICES), dtype=torch.int64)
    for place, name in enumerate(EXPERT_MATRICES):
        if (table := weights.get(f"experts_{name}_bias")) is not None:
            found[:, place] = (_plain(table, dtype) or 0) + every * table.stride(0) * table.element_size()
    return found


def _plain(tensor: Tensor | None, dtype: torch.dtype) -> int | None:
    """The address of a contiguous tensor."""
    if tensor is None:
        return None
    assert tensor.dtype is dtype and tensor.is_contiguous()
    return tensor.data_ptr()


def _address_of(matrix: Matrix) -> int:
    """Where a matrix that native kernels serve lies in memory."""
    data = native_bytes(format_of(matrix), [matrix])
    assert data is not None
    return address(data[0], bytes_for(format_of(matrix), tuple(matrix.shape)))
