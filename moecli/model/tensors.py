"""Every tensor that a spec implies: its role, its shape, and the part of the model it is counted under."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from moecli.model.spec import (
    MLA,
    Extra,
    FeedForward,
    GroupedQuery,
    Indexer,
    Layer,
    Mixture,
    ModelSpec,
    Part,
    QkNorm,
    alike,
)

__all__ = [
    "EXPERT_MATRICES",
    "FLOAT32",
    "MIXER_FLOAT32",
    "MIXER_PROJECTIONS",
    "Part",
    "Tensor",
    "counted_tensors",
    "dense_tensors",
    "expert_count",
    "expert_shapes",
]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One logical tensor. `layer` is None outside the blocks. Matrices are [out, in]. `tied`: a table, and the head."""

    role: str
    shape: tuple[int, ...]
    part: Part
    layer: int | None = None
    tied: bool = False

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def chooses(self) -> bool:
        """Whether it is part of a choice of experts or tokens, and so kept as precise as it was published."""
        return self.part is Part.ROUTER or self.role == "index_weights"


EXPERT_MATRICES = ("gate", "up", "down")
# Of a mixer with a state: its two large projections, and what is computed with in float32, as the router is.
MIXER_PROJECTIONS = frozenset({"mixer_in", "mixer_out"})
MIXER_FLOAT32 = frozenset(
    f"mixer_{role}"
    for role in ("conv", "conv_bias", "decay", "step_bias", "skip", "norm", "step_norm", "write_norm", "read_norm")
)
# What chooses among experts or tokens never loses precision.
FLOAT32 = MIXER_FLOAT32 | {
    "router", "router_bias", "router_linear_bias", "router_scale", "router_expert_scale", "index_weights"
}  # fmt: skip


def expert_shapes(hidden_size: int, expert: FeedForward) -> dict[str, tuple[int, int]]:
    """The matrices of one expert, [out, in]. `hidden_size` is what it reads and writes."""
    shapes = {
        "gate": (expert.intermediate_size, hidden_size),
        "up": (expert.intermediate_size, hidden_size),
        "down": (hidden_size, expert.intermediate_size),
    }
    if not expert.gated:
        del shapes["gate"]
    return shapes


def expert_count(hidden_size: int, expert: FeedForward) -> int:
    """The parameters of one expert, biases included."""
    shapes = expert_shapes(hidden_size, expert).values()
    return sum(rows * columns + (rows if expert.bias else 0) for rows, columns in shapes)


def dense_tensors(spec: ModelSpec) -> Iterator[Tensor]:
    """All tensors but the routed experts' matrices, in the order of the forward pass."""
    width = spec.hidden_size
    yield Tensor("embedding", (spec.vocab_size, width), Part.EMBEDDING, tied=spec.tied_embeddings)
    yield from _position_tables(spec)
    for index, layer in enumerate(spec.blocks):
        yield from _layer_tensors(spec, index, layer)
    if spec.encoder:
        yield from _norm(spec, "encoder_final_norm", None)
    yield from _extras(spec.extra, None)
    yield from _norm(spec, "final_norm", None)
    if not spec.tied_embeddings:
        yield Tensor("lm_head", (spec.vocab_size, width), Part.LM_HEAD)
    if spec.lm_head_bias:
        yield Tensor("lm_head_bias", (spec.vocab_size,), Part.LM_HEAD)


def counted_tensors(spec: ModelSpec) -> Iterator[tuple[Tensor, int]]:
    """The same, and how many there are of each: the tensors of layers that are alike come once, as of the first."""
    few = replace(
        spec,
        encoder=tuple(layer for layer, _ in alike(spec.encoder)),
        layers=tuple(layer for layer, _ in alike(spec.layers)),
    )
    counts = [count for _, count in (*alike(spec.encoder), *alike(spec.layers))]
    for tensor in dense_tensors(few):
        yield tensor, 1 if tensor.layer is None else counts[tensor.layer]


def _position_tables(spec: ModelSpec) -> Iterator[Tensor]:
    """One for each stack."""
    if (positions := spec.relative_positions) is not None:
        for role, layers in (("encoder_positions", spec.encoder), ("positions", spec.layers)):
            if layers:
                yield Tensor(role, (positions.buckets, layers[0].attention.heads), Part.ATTENTION)


def _layer_tensors(spec: ModelSpec, index: int, layer: Layer) -> Iterator[Tensor]:
    width = spec.hidden_size
    if layer.mixes:
        yield from _norm(spec, "attn_norm", index)
        yield from _mixer(layer, width, index)
    if layer.cross is not None:
        yield from _norm(spec, "cross_norm", index)
        yield Tensor("cross_q", (layer.cross.query_width, width), Part.ATTENTION, index)
        yield Tensor("cross_kv", (layer.cross.kv_width + layer.cross.value_width, width), Part.ATTENTION, index)
        yield Tensor("cross_o", (width, layer.cross.query_width), Part.ATTENTION, index)
    if layer.feeds and not layer.one_norm:
        yield from _norm(spec, "ffn_norm", index)
    if spec.branch_norms:
        yield from _norm(spec, "post_attn_norm", index)
        yield from _norm(spec, "post_ffn_norm", index)
    if isinstance(layer.ffn, Mixture):
        yield from _mixture(layer.ffn, width, index)
    elif layer.feeds:
        yield from _feed_forward("", layer.ffn, width, Part.DENSE_FFN, index)
    if layer.parallel is not None:
        yield from _norm(spec, "parallel_norm", index)
        yield from _feed_forward("parallel_", layer.parallel, width, Part.DENSE_FFN, index)
    if layer.parallel_norms:
        yield from _norm(spec, "post_parallel_norm", index)
        yield from _norm(spec, "post_mixture_norm", index)
    if layer.output_scale:
        yield Tensor("output_scale", (1,), Part.OTHER, index)
    yield from _extras(layer.extra, index)


def _norm(spec: ModelSpec, role: str, layer: int | None) -> Iterator[Tensor]:
    yield Tensor(role, (spec.hidden_size,), Part.NORMS, layer)
    if spec.norm_bias:
        yield Tensor(f"{role}_bias", (spec.hidden_size,), Part.NORMS, layer)


def _extras(extras: tuple[Extra, ...], layer: int | None) -> Iterator[Tensor]:
    for extra in extras:
        yield Tensor(extra.role, extra.shape, extra.part, layer)


def _mixer(layer: Layer, width: int, index: int) -> Iterator[Tensor]:
    if layer.recurrent is not None:
        yield from _extras(layer.recurrent.tensors, index)
    elif isinstance(layer.attention, MLA):
        yield from _latent(layer.attention, width, index)
    elif layer.attention.projections:
        yield from _extras(layer.attention.projections, index)
    else:
        yield from _grouped_query(layer.attention, width, index)


def _grouped_query(attention: GroupedQuery, width: int, layer: int) -> Iterator[Tensor]:
    role, rows = attention.projection, attention.projected_width
    yield Tensor(role, (rows, width), Part.ATTENTION, layer)
    if attention.qkv_bias:
        yield Tensor(f"{role}_bias", (rows,), Part.ATTENTION, layer)
    if attention.qk_norm.has_weights:
        whole = attention.qk_norm is QkNorm.FULL
        yield Tensor("q_norm", (attention.query_width if whole else attention.head_dim,), Part.NORMS, layer)
        yield Tensor("k_norm", (attention.kv_width if whole else attention.head_dim,), Part.NORMS, layer)
    if attention.sinks:
        yield Tensor("sinks", (attention.heads,), Part.ATTENTION, layer)
    if attention.gate_width:
        yield Tensor("attn_gate", (attention.gate_width, width), Part.ATTENTION, layer)
    yield Tensor("o", (width, attention.mixed_width), Part.ATTENTION, layer)
    if attention.output_bias:
        yield Tensor("o_bias", (width,), Part.ATTENTION, layer)


def _latent(attention: MLA, width: int, layer: int) -> Iterator[Tensor]:
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
    if attention.indexer is not None and not attention.indexer.shared:
        yield from _indexer(attention.indexer, attention.query_rank or width, width, layer)
    expanded = attention.heads * (attention.nope_dim + attention.value_dim)
    yield Tensor("kv_b", (expanded, attention.kv_rank), Part.ATTENTION, layer)
    if attention.gate_width:
        yield Tensor("attn_gate", (attention.gate_width, width), Part.ATTENTION, layer)
    yield Tensor("o", (width, attention.heads * attention.value_dim), Part.ATTENTION, layer)
    if attention.bias:
        yield Tensor("o_bias", (width,), Part.ATTENTION, layer)


def _indexer(indexer: Indexer, query_width: int, width: int, layer: int) -> Iterator[Tensor]:
    yield Tensor("index_q", (indexer.heads * indexer.head_dim, query_width), Part.ATTENTION, layer)
    yield Tensor("index_k", (indexer.head_dim, width), Part.ATTENTION, layer)
    yield Tensor("index_weights", (indexer.heads, width), Part.ATTENTION, layer)
    yield Tensor("index_k_norm", (indexer.head_dim,), Part.NORMS, layer)
    yield Tensor("index_k_norm_bias", (indexer.head_dim,), Part.NORMS, layer)


def _mixture(mixture: Mixture, width: int, layer: int) -> Iterator[Tensor]:
    experts = mixture.router.experts
    yield Tensor("router", (experts, width), Part.ROUTER, layer)
    if mixture.router.reads_scaled:
        yield Tensor("router_scale", (width,), Part.ROUTER, layer)
    if mixture.router.expert_scale:
        yield Tensor("router_expert_scale", (experts,), Part.ROUTER, layer)
    if mixture.router.bias:
        yield Tensor("router_linear_bias", (experts,), Part.ROUTER, layer)
    if mixture.router.correction_bias:
        yield Tensor("router_bias", (experts,), Part.ROUTER, layer)
    if mixture.expert.bias:
        for name, (rows, _) in expert_shapes(mixture.latent_width or width, mixture.expert).items():
            yield Tensor(f"experts_{name}_bias", (experts, rows), Part.ROUTED_EXPERTS, layer)
    if mixture.shared is not None:
        yield from _feed_forward("shared_", mixture.shared, width, Part.SHARED_EXPERTS, layer)
    if mixture.shared_gate:
        yield Tensor("shared_gate", (1, width), Part.ROUTER, layer)


def _feed_forward(prefix: str, ffn: FeedForward, width: int, part: Part, layer: int) -> Iterator[Tensor]:
    name, rows = ("gate_up", 2 * ffn.intermediate_size) if ffn.gated else ("up", ffn.intermediate_size)
    yield Tensor(f"{prefix}{name}", (rows, width), part, layer)
    yield Tensor(f"{prefix}down", (width, ffn.intermediate_size), part, layer)
    if ffn.bias:
        yield Tensor(f"{prefix}{name}_bias", (rows,), part, layer)
        yield Tensor(f"{prefix}down_bias", (width,), part, layer)
