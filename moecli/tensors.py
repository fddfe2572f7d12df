"""Every tensor that a spec implies: its role, its shape, and the part of the model it is counted under."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from moecli.spec import FeedForward, GroupedQuery, Latent, Layer, Mixture, ModelSpec, QkNorm


class Part(Enum):
    """Where a parameter is counted; every tensor belongs to exactly one part."""

    EMBEDDING = "embedding"
    ATTENTION = "attention"
    ROUTER = "router"
    ROUTED_EXPERTS = "routed_experts"
    SHARED_EXPERTS = "shared_experts"
    DENSE_FFN = "dense_ffn"
    NORMS = "norms"
    HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One logical tensor. `layer` is None outside the blocks. Matrices are [out, in]."""

    role: str
    shape: tuple[int, ...]
    part: Part
    layer: int | None = None

    @property
    def count(self) -> int:
        return math.prod(self.shape)


EXPERT_MATRICES = ("gate", "up", "down")


def expert_shapes(hidden_size: int, expert: FeedForward) -> dict[str, tuple[int, int]]:
    """The matrices of one expert, [out, in]."""
    return {
        "gate": (expert.width, hidden_size),
        "up": (expert.width, hidden_size),
        "down": (hidden_size, expert.width),
    }


def dense_tensors(spec: ModelSpec) -> Iterator[Tensor]:
    """All tensors but the routed experts, in the order of the forward pass."""
    width = spec.hidden_size
    yield Tensor("embedding", (spec.vocab_size, width), Part.EMBEDDING)
    for index, layer in enumerate(spec.layers):
        yield from _layer_tensors(spec, index, layer)
    yield Tensor("final_norm", (width,), Part.NORMS)
    if not spec.tied_embeddings:
        yield Tensor("head", (spec.vocab_size, width), Part.HEAD)


def _layer_tensors(spec: ModelSpec, index: int, layer: Layer) -> Iterator[Tensor]:
    width = spec.hidden_size
    yield Tensor("attn_norm", (width,), Part.NORMS, index)
    if isinstance(layer.attention, Latent):
        yield from _latent(layer.attention, width, index)
    else:
        yield from _grouped_query(layer.attention, width, index)
    yield Tensor("ffn_norm", (width,), Part.NORMS, index)
    if spec.branch_norms:
        yield Tensor("post_attn_norm", (width,), Part.NORMS, index)
        yield Tensor("post_ffn_norm", (width,), Part.NORMS, index)
    if isinstance(layer.ffn, Mixture):
        yield from _mixture(layer.ffn, width, index)
    else:
        yield from _feed_forward("", layer.ffn, width, Part.DENSE_FFN, index)


def _grouped_query(attention: GroupedQuery, width: int, layer: int) -> Iterator[Tensor]:
    rows = attention.query_width + 2 * attention.kv_width
    yield Tensor("qkv", (rows, width), Part.ATTENTION, layer)
    if attention.qkv_bias:
        yield Tensor("qkv_bias", (rows,), Part.ATTENTION, layer)
    if attention.qk_norm is not QkNorm.NONE:
        whole = attention.qk_norm is QkNorm.FULL
        yield Tensor("q_norm", (attention.query_width if whole else attention.head_dim,), Part.NORMS, layer)
        yield Tensor("k_norm", (attention.kv_width if whole else attention.head_dim,), Part.NORMS, layer)
    yield Tensor("o", (width, attention.query_width), Part.ATTENTION, layer)
    if attention.output_bias:
        yield Tensor("o_bias", (width,), Part.ATTENTION, layer)


def _latent(attention: Latent, width: int, layer: int) -> Iterator[Tensor]:
    queries = attention.heads * attention.head_dim
    if attention.query_rank is None:
        yield Tensor("q", (queries, width), Part.ATTENTION, layer)
    else:
        yield Tensor("q_a", (attention.query_rank, width), Part.ATTENTION, layer)
        if attention.bias:
            yield Tensor("q_a_bias", (attention.query_rank,), Part.ATTENTION, layer)
        yield Tensor("q_a_norm", (attention.query_rank,), Part.NORMS, layer)
        yield Tensor("q_b", (queries, attention.query_rank), Part.ATTENTION, layer)
    yield Tensor("kv_a", (attention.cache_width, width), Part.ATTENTION, layer)
    if attention.bias:
        yield Tensor("kv_a_bias", (attention.cache_width,), Part.ATTENTION, layer)
    yield Tensor("kv_a_norm", (attention.kv_rank,), Part.NORMS, layer)
    expanded = attention.heads * (attention.nope_dim + attention.value_dim)
    yield Tensor("kv_b", (expanded, attention.kv_rank), Part.ATTENTION, layer)
    yield Tensor("o", (width, attention.heads * attention.value_dim), Part.ATTENTION, layer)
    if attention.bias:
        yield Tensor("o_bias", (width,), Part.ATTENTION, layer)


def _mixture(mixture: Mixture, width: int, layer: int) -> Iterator[Tensor]:
    experts = mixture.router.experts
    yield Tensor("router", (experts, width), Part.ROUTER, layer)
    if mixture.router.correction_bias:
        yield Tensor("router_bias", (experts,), Part.ROUTER, layer)
    if mixture.shared is not None:
        yield from _feed_forward("shared_", mixture.shared, width, Part.SHARED_EXPERTS, layer)
    if mixture.shared_gate:
        yield Tensor("shared_gate", (1, width), Part.ROUTER, layer)


def _feed_forward(prefix: str, ffn: FeedForward, width: int, part: Part, layer: int) -> Iterator[Tensor]:
    yield Tensor(f"{prefix}gate_up", (2 * ffn.width, width), part, layer)
    yield Tensor(f"{prefix}down", (width, ffn.width), part, layer)
