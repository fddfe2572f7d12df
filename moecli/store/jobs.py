"""What there is to pack: each matrix and vector of a store, where its bytes lie now and where they go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from moecli.checkpoint.binding import Slice, Weights
from moecli.model.tensors import EXPERT_MATRICES
from moecli.store.layout import DENSE, EXPERTS, StoreLayout, experts_file


@dataclass(frozen=True, slots=True)
class Job:
    """One tensor [out, in] or [n] to be written in `dtype` at `offset` of `file`. Sources are stacked by rows."""

    name: str  # "layers.3.qkv", "layers.3.experts.17.up"
    layer: int  # -1 outside the layers
    file: str
    offset: int
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[Slice, ...]

    @property
    def read_size(self) -> int:
        return sum(source.size for source in self.sources)


def jobs(weights: Weights, layout: StoreLayout) -> list[Job]:
    """All of them, layer by layer. Reads nothing: `weights` may be headers whose files are not here yet."""
    return sorted((*_dense(weights, layout), *_experts(weights, layout)), key=lambda job: job.layer)


def by_layer(todo: Iterable[Job]) -> Iterator[list[Job]]:
    """The units that packing from a whole checkpoint is done in."""
    for _, unit in groupby(todo, key=lambda job: job.layer):
        yield list(unit)


def _dense(weights: Weights, layout: StoreLayout) -> Iterator[Job]:
    for place in layout.dense:
        tensor = place.tensor
        sources = tuple(weights.rows(tensor))
        layer = -1 if tensor.layer is None else tensor.layer
        yield Job(place.name, layer, DENSE, place.offset, place.dtype, tensor.shape, sources)


def _experts(weights: Weights, layout: StoreLayout) -> Iterator[Job]:
    for layer, record in layout.records.items():
        for expert in range(layout.experts[layer]):
            start = layout.records_start(layer) + expert * record.stride
            for matrix in (name for name in EXPERT_MATRICES if name in record.fields):
                field = record.fields[matrix]
                name = f"layers.{layer}.{EXPERTS}.{expert}.{matrix}"
                source = weights.expert(layer, expert, matrix)
                offset = start + field.offset
                yield Job(name, layer, experts_file(layer), offset, record.dtype, field.shape, (source,))
