"""The store for models that fit: every expert in memory, in place in its mapped file or in an arena."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from itertools import chain

import torch
from torch import Tensor

from moecli.checkpoint.binding import Weights
from moecli.checkpoint.reading import stored_slice
from moecli.experts.arena import Arena
from moecli.experts.pieces import as_expert, mapped_record
from moecli.experts.store import Group, Statistics, Streamed
from moecli.formats.words import formats_of
from moecli.kernels.linear import Expert, native_bytes
from moecli.model.spec import ModelSpec
from moecli.store.expert_record import Record, layer_records
from moecli.store.pack_rows import pack_rows
from moecli.store.packed import PackedStore
from moecli.store.progress import Progress

Locate = Callable[[int, int], Expert | Streamed]  # by layer and expert


class ResidentExperts:
    """Experts that `locate` finds in memory; each is looked up once."""

    def __init__(self, spec: ModelSpec, dtype: str, locate: Locate, budget: int = 0) -> None:
        self.dtype = dtype
        self.statistics = Statistics(budget_bytes=budget)
        self._locate = locate
        self._experts = {layer: mixture.router.experts for layer, mixture in spec.mixtures}
        self._found: dict[tuple[int, int], Expert | Streamed] = {}

    def iter_ready(self, layer: int, counts: dict[int, int], tokens: int) -> Generator[Group, None, None]:
        """All of them, in one group."""
        self.statistics.hits += len(counts)
        yield [(expert, self._expert(layer, expert)) for expert in counts]

    def addresses(self, layer: int) -> Tensor | None:
        """Where gate, up and down of every expert of a layer lie, int64 [E, 3]; None if one serves no kernel."""
        found = [self._expert(layer, expert) for expert in range(self._experts[layer])]
        whole = [expert for expert in found if isinstance(expert, tuple) and len(expert) == 3]
        matrices = native_bytes(self.dtype, chain.from_iterable(whole)) if len(whole) == len(found) else None
        return torch.tensor([each.data_ptr() for each in matrices]).view(-1, 3) if matrices else None

    def records(self, layer: int) -> None:
        """None: there is no device."""

    def _expert(self, layer: int, expert: int) -> Expert | Streamed:
        key = layer, expert
        if key not in self._found:
            self._found[key] = self._locate(layer, expert)
        return self._found[key]


def checkpoint_experts(weights: Weights, budget: int, progress: Progress) -> ResidentExperts:
    """The experts of a checkpoint that fits, as they are stored, in place in its mapped files."""
    checkpoint = weights.checkpoint
    checkpoint.populate(weights.expert_tensors(), progress)

    def locate(layer: int, expert: int) -> Expert:
        return tuple(
            stored_slice(checkpoint, weights.expert(layer, expert, name)) for name in weights.expert_matrices(layer)
        )

    return ResidentExperts(weights.spec, weights.dtype, locate, budget)


def store_experts(store: PackedStore, budget: int, progress: Progress) -> ResidentExperts:
    """The experts of a packed store that fits, in place in its mapped files."""
    store.checkpoint.populate((store.experts(layer) for layer, _ in store.spec.mixtures), progress)
    return ResidentExperts(
        store.spec,
        formats_of(store.dtype).experts,
        lambda layer, expert: as_expert(store.record(layer), mapped_record(store, layer, expert)),
        budget,
    )


def packed_experts(weights: Weights, dtype: str, budget: int, progress: Progress) -> ResidentExperts:
    """A checkpoint's experts in another format, packed now; CheckpointError for weights that it cannot hold."""
    spec = weights.spec
    records = layer_records(spec, dtype)
    places = [(layer, expert) for layer, mixture in spec.mixtures for expert in range(mixture.router.experts)]
    stride = max((record.stride for record in records.values()), default=0)
    arena = Arena(len(places), stride)
    slots = {place: index for index, place in enumerate(places)}
    for (layer, expert), index in slots.items():
        write_record(weights, records, layer, expert, arena.slot(index))
        progress((index + 1) * stride, len(places) * stride)
    return ResidentExperts(
        spec, dtype, lambda layer, expert: as_expert(records[layer], arena.slot(slots[layer, expert])), budget
    )


def write_record(weights: Weights, records: Mapping[int, Record], layer: int, expert: int, target: Tensor) -> None:
    """Pack one expert of a checkpoint into its record's bytes, uint8 [stride]."""
    record = records[layer]
    for name, field in record.fields.items():
        part = weights.expert(layer, expert, name)
        packed = target[field.offset : field.offset + field.size]
        what = f"{name} of expert {expert} of layer {layer}"
        pack_rows(packed, record.dtype, weights.checkpoint, part, slice(0, field.shape[0]), what)
