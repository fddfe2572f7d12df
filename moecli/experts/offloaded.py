"""The store for models that do not fit: slots in RAM, the rest on disk; residents are computed while others arrive."""

from __future__ import annotations

import queue
from collections.abc import Generator
from contextlib import closing

from moecli.experts.arena import Arena
from moecli.experts.disk import Disk
from moecli.experts.pieces import as_expert
from moecli.experts.policies import POLICIES, Slots
from moecli.experts.readers import PendingRead, Readers
from moecli.experts.store import Group, Statistics, Streamed
from moecli.kernels.linear import Expert
from moecli.store.expert_record import slots_per_layer
from moecli.store.packed import PackedStore


class OffloadedExperts:
    """`slots` experts of a packed store in RAM, shared out evenly among the layers; which ones, the policy says."""

    def __init__(self, store: PackedStore, slots: int, policy: str, readers: Readers | None = None) -> None:
        mixtures = store.spec.mixtures
        self.dtype = store.dtype
        self._records = {layer: store.record(layer) for layer, _ in mixtures}
        self._arena = Arena(slots, max(record.stride for record in self._records.values()))
        self.statistics = Statistics(budget_bytes=slots * self._arena.size)
        self._disk = Disk(store, self.statistics, readers or Readers())
        self._layers: dict[int, _Layer] = {}
        first = 0
        for (layer, _), count in zip(mixtures, slots_per_layer(store.spec, slots), strict=True):
            self._layers[layer] = _Layer(first, Slots(count, POLICIES[policy].new()))
            first += count

    def addresses(self, layer: int) -> None:
        """None: experts of any layer may move."""

    def iter_ready(self, layer: int, counts: dict[int, int], tokens: int) -> Generator[Group, None, None]:
        """Residents first, then those that get a slot as they arrive, then those that only pass through."""
        here = self._layers[layer]
        access = here.slots.access(counts, tokens)
        # A slot whose read was interrupted is the expert's, but its bytes are not.
        hits = [(expert, slot) for expert, slot in access.hits if expert in here.filled]
        kept = access.misses + [(expert, slot) for expert, slot in access.hits if expert not in here.filled]
        passing = [expert for expert, slot in kept if slot is None]
        self.statistics.hits += len(hits)
        self.statistics.misses += len(kept)
        here.filled.difference_update(expert for expert, _ in kept)
        arrived: queue.SimpleQueue[PendingRead] = queue.SimpleQueue()
        pending: dict[PendingRead, tuple[int, int]] = {}
        try:
            for expert, slot in kept:
                if slot is not None:
                    index = here.first + slot
                    read = self._disk.fetch(layer, expert, self._arena.memory(index), arrived.put)
                    pending[read] = expert, index
            with closing(self._disk.stream(layer, passing)) as stream:
                if hits:
                    yield [(expert, self._expert(layer, here.first + slot)) for expert, slot in hits]
                for _ in range(len(pending)):
                    read = self._disk.next(arrived)
                    expert, index = pending[read]
                    here.filled.add(expert)
                    yield [(expert, self._expert(layer, index))]
                for each in stream:
                    yield [each]
        finally:
            for read in pending:
                read.done.wait()

    def _expert(self, layer: int, index: int) -> Expert | Streamed:
        return as_expert(self._records[layer], self._arena.slot(index))


class _Layer:
    """One layer's share of the arena: its slots begin at `first`."""

    def __init__(self, first: int, slots: Slots) -> None:
        self.first, self.slots = first, slots
        self.filled: set[int] = set()  # experts whose bytes are in their slots
