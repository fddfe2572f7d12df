"""The store for models that do not fit: slots in RAM, the rest on disk; residents are computed while others arrive."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing

from moecli.experts.arena import Arena
from moecli.experts.disk import Disk, Records, readers_of
from moecli.experts.pieces import as_expert
from moecli.experts.policies import POLICIES, Slots
from moecli.experts.readers import PendingRead, Readers
from moecli.experts.store import Group, Statistics, Streamed
from moecli.kernels.blocking import MAX_TOKENS
from moecli.kernels.linear import Expert
from moecli.store.expert_record import STAGING, slots_per_layer


class OffloadedExperts:
    """`slots` experts in RAM, shared out evenly among the layers; which ones, the policy says."""

    def __init__(self, store: Records, slots: int, policy: str, readers: Readers | None = None) -> None:
        mixtures = store.spec.mixtures
        self._records = {layer: store.record(layer) for layer, _ in mixtures}
        self.dtype = next(iter(self._records.values())).dtype
        self._arena = Arena(slots, max(record.stride for record in self._records.values()))
        self.statistics = Statistics(budget_bytes=slots * self._arena.size)
        self._disk = Disk(store, self.statistics, readers or readers_of(store))
        self._layers: dict[int, _Layer] = {}
        first = 0
        for (layer, _), count in zip(mixtures, slots_per_layer(store.spec, slots), strict=True):
            self._layers[layer] = _Layer(first, Slots(count, POLICIES[policy].new()))
            first += count

    def addresses(self, layer: int) -> None:
        """None: experts of any layer may move."""

    def records(self, layer: int) -> None:
        """None: there is no device."""

    def iter_ready(self, layer: int, counts: dict[int, int], tokens: int) -> Generator[Group, None, None]:
        """Residents first, then the others as they arrive; for many tokens all in the order of their numbers."""
        here = self._layers[layer]
        access = here.slots.access(counts, tokens)
        # A slot whose read was interrupted is the expert's, but its bytes are not.
        hits = {expert: here.first + slot for expert, slot in access.hits if expert in here.filled}
        missing = access.misses + [(expert, slot) for expert, slot in access.hits if expert not in here.filled]
        kept = {expert: here.first + slot for expert, slot in missing if slot is not None}
        passing = [expert for expert, slot in missing if slot is None]
        self.statistics.hits += len(hits)
        self.statistics.misses += len(missing)
        here.filled.difference_update(expert for expert, _ in missing)
        if tokens <= MAX_TOKENS:
            yield from self._as_they_arrive(layer, hits, kept, passing)
        else:
            yield from self._in_order(layer, hits, dict(sorted(kept.items())), sorted(passing))

    def _as_they_arrive(
        self, layer: int, hits: Mapping[int, int], kept: Mapping[int, int], passing: Sequence[int]
    ) -> Iterator[Group]:
        arrived: queue.SimpleQueue[PendingRead] = queue.SimpleQueue()
        pending: dict[PendingRead, int] = {}
        try:
            for expert, index in kept.items():
                pending[self._disk.fetch(layer, expert, self._arena.memory(index), arrived.put)] = expert
            with closing(self._disk.stream(layer, passing)) as stream:
                if hits:
                    yield [(expert, self._expert(layer, index)) for expert, index in hits.items()]
                for _ in range(len(pending)):
                    expert = pending[self._disk.next(arrived)]
                    self._layers[layer].filled.add(expert)
                    yield [(expert, self._expert(layer, kept[expert]))]
                for each in stream:
                    yield [each]
        finally:
            for read in pending:
                read.done.wait()

    def _in_order(
        self, layer: int, hits: Mapping[int, int], kept: Mapping[int, int], passing: Sequence[int]
    ) -> Iterator[Group]:
        """Read about in the order of their turns, a few ahead: the disk works while experts are computed."""
        unread, pending = deque(kept), deque[PendingRead]()

        def fetch() -> None:
            if unread:
                expert = unread.popleft()
                pending.append(self._disk.fetch(layer, expert, self._arena.memory(kept[expert])))

        try:
            for _ in range(STAGING):
                fetch()
            with closing(self._disk.stream(layer, passing)) as stream:
                streamed = iter(stream)
                for expert in sorted((*hits, *kept, *passing)):
                    if expert in hits:
                        yield [(expert, self._expert(layer, hits[expert]))]
                    elif expert in kept:
                        self._disk.wait(pending[0])
                        pending.popleft()
                        self._layers[layer].filled.add(expert)
                        fetch()
                        yield [(expert, self._expert(layer, kept[expert]))]
                    else:
                        yield [next(streamed)]
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
