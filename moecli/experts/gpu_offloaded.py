"""The store for a device that holds some experts: the others lie in RAM or on disk, and are computed or copied."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from moecli.experts.arena import Arena
from moecli.experts.copies import Copies, Parts, copies_for
from moecli.experts.disk import Disk, Records, readers_of
from moecli.experts.pieces import PiecewiseExpert, as_expert
from moecli.experts.policies import POLICIES
from moecli.experts.rates import measure
from moecli.experts.readers import PendingRead
from moecli.experts.slot_map import Lookup, Place, SlotMap
from moecli.experts.store import Group, Statistics, Streamed
from moecli.kernels.blocking import MAX_TOKENS, STAGED
from moecli.kernels.linear import Expert, Matrix, Packed
from moecli.model.spec import ModelSpec
from moecli.planning.rates import Rates, cheaper, split
from moecli.store.expert_record import Record, slots_per_layer

Write = Callable[[int, int, Tensor], None]  # layer, expert, and the host memory that its record goes to
EXCHANGES = 1 / 32  # with RAM, per expert computed on the CPU: little traffic beside that of computing


@dataclass(slots=True)
class DeviceStatistics(Statistics):
    """Also what the device did: hits there, and bytes of experts that were copied to it."""

    device_hits: int = 0
    bytes_copied: int = 0


@dataclass(frozen=True, slots=True)
class Capacity:
    """A device, the precision it computes in, and how many experts it and the RAM hold over all layers."""

    device: torch.device
    compute: torch.dtype
    on_device: int
    in_ram: int


class GpuOffloadedExperts:
    """Each expert is in the device, in RAM or on disk, never in two of them; the policy says which.

    One in the device is computed there. One in RAM or from disk is computed on the CPU or, if that is quicker, copied
    to the device first; there it stays if it is worth more than another, which goes to RAM in its place.
    """

    def __init__(
        self,
        spec: ModelSpec,
        records: Mapping[int, Record],
        capacity: Capacity,
        policy: str,
        *,
        store: Records | None = None,
        rates: Rates | None = None,
        copies: Callable[[Arena, torch.device], Copies] = copies_for,
    ) -> None:
        self._records = records
        self.dtype = next(iter(records.values())).dtype
        size = max(record.stride for record in records.values())
        on_device = slots_per_layer(spec, capacity.on_device)
        anywhere = slots_per_layer(spec, capacity.on_device + capacity.in_ram)
        self._device = Arena(STAGED + sum(on_device), size, capacity.device)
        self._ram = Arena(sum(anywhere) - sum(on_device), size, copied_to=capacity.device)
        self._copies = copies(self._device, capacity.device)
        self._spare = deque(range(STAGED))  # slots of the device that belong to no layer
        self._layers: dict[int, SlotMap] = {}
        device, ram = iter(range(STAGED, len(self._device))), iter(range(len(self._ram)))
        for layer, first, count in zip(records, on_device, anywhere, strict=True):
            places = [Place(True, next(device)) for _ in range(first)]
            places += [Place(False, next(ram)) for _ in range(count - first)]
            self._layers[layer] = SlotMap(places, POLICIES[policy].new())
        self._experts = {layer: mixture.router.experts for layer, mixture in spec.mixtures}
        self._tables: dict[int, Tensor] = {}
        self._by_table = False  # whether slots have been computed with by a table since copies last waited for that
        self._credit = 0.0  # exchanges that may be made
        self.statistics = DeviceStatistics(budget_bytes=sum(anywhere) * size)
        self._disk = None if store is None else Disk(store, self.statistics, readers_of(store))
        layer, mixture = spec.mixtures[0]
        self.rates = rates or measure(
            records[layer], mixture.expert.activation, capacity.compute, self._device, self._ram, self._copies
        )

    def fill(self, write: Write, progress: Callable[[int, int], None]) -> None:
        """Put every expert in its place now; there is one for each. `progress` is told bytes done, of how many."""
        size = self._ram.size
        passing = Arena(1, size, copied_to=self._device.device).slot(0)
        done, total = 0, size * sum(map(len, self._layers.values()))
        for number, layer in self._layers.items():
            found = layer.find(dict.fromkeys(range(len(layer)), 0), 1)
            for expert, index in found.to_ram.items():
                write(number, expert, self._ram.slot(index))
                progress(done := done + size, total)
            for expert, index in found.to_device.items():
                write(number, expert, passing)
                self._copies.upload_parts(index, [(0, passing)])
                progress(done := done + size, total)
            for expert in (*found.to_ram, *found.to_device):
                layer.filled(expert)

    def addresses(self, layer: int) -> None:
        """None: experts of any layer may move."""

    def records(self, layer: int) -> Tensor | None:
        """Where the record of every expert of a layer begins in the device, int64 [E] there; 0 for those in RAM.

        None where some are on disk, or are copied to be computed. The table is the same tensor as long as the store,
        and changes when experts change places.
        """
        if layer not in self._tables and self._places_all(layer):
            self._tables[layer] = torch.zeros(self._experts[layer], dtype=torch.int64, device=self._device.device)
            self._update(layer)
        return self._tables.get(layer)

    def _places_all(self, layer: int) -> bool:
        """Whether a step of a few tokens finds every expert where it is computed."""
        places, experts = self._layers[layer], self._experts[layer]
        stays = not cheaper(MAX_TOKENS, self._records[layer].size, self.rates)
        return places.filled_places == experts and (stays or len(places.residents) == experts)

    def _update(self, layer: int) -> None:
        table = [0] * self._experts[layer]
        for expert, slot in self._layers[layer].residents.items():
            table[expert] = self._device.slot(slot).data_ptr()
        self._tables[layer].copy_(torch.tensor(table))

    def rest_of(self, layer: int, counts: dict[int, int], tokens: int) -> Group:
        """Those in RAM of a pass whose others are computed by `records`."""
        found = self._layers[layer].find(counts, tokens)
        self._count(found)
        self._by_table = True
        return [(expert, self._in_ram(layer, found.ram[expert])) for expert in sorted(found.ram)]

    def settle(self, layer: int, rest: Group) -> None:
        """After a pass by `rest_of`, with all of it started: one of the rest may go to the device for another."""
        self._credit = min(1.0, self._credit + len(rest) * EXCHANGES)
        if self._credit < 1.0 or not rest:
            return
        places = self._layers[layer]
        best = places.strongest([expert for expert, _ in rest])
        if self._promote(layer, best, places.in_ram(best), [best]) is not None:
            self._credit = 0.0

    def iter_ready(self, layer: int, counts: dict[int, int], tokens: int) -> Generator[Group, None, None]:
        """Those on the device and in RAM first, then those from disk as they arrive."""
        found = self._layers[layer].find(counts, tokens)
        self._count(found)
        try:
            if self._disk is None:
                yield from self._resident(layer, found, counts)
            else:
                yield from self._with_disk(self._disk, layer, found, counts)
        except BaseException:  # nothing stays on its way
            self._copies.synchronize()
            raise

    def _with_disk(self, disk: Disk, layer: int, found: Lookup, counts: Mapping[int, int]) -> Iterator[Group]:
        """What is at hand while the rest is read."""
        arrived: queue.SimpleQueue[PendingRead] = queue.SimpleQueue()
        pending: dict[PendingRead, int] = {}
        try:
            for expert, index in found.to_ram.items():
                self._copies.wait(index)
                pending[disk.fetch(layer, expert, self._ram.memory(index), arrived.put)] = expert
            with closing(disk.stream(layer, [*found.to_device, *found.passing])) as stream:
                yield from self._resident(layer, found, counts)
                for _ in range(len(pending)):
                    yield from self._arrived(layer, pending[disk.next(arrived)], found, counts)
                for expert, data in stream:
                    yield from self._streamed(layer, expert, data, found, counts)
        finally:
            for read in pending:
                read.done.wait()

    def _resident(self, layer: int, found: Lookup, counts: Mapping[int, int]) -> Iterator[Group]:
        """The device begins with its own and goes on with those copied to it, while the CPU computes the others."""
        record = self._records[layer]
        if found.device:
            yield from self._on_device(layer, found.device)
        busy = sum(self.rates.device.seconds(counts[expert], record.size) for expert in found.device)
        copied, _ = split({expert: counts[expert] for expert in found.ram}, record.size, self.rates, busy)
        for expert in copied:
            yield from self._copied(layer, expert, found.ram[expert], counts)
        if stay := found.ram.keys() - copied:
            yield [(expert, self._in_ram(layer, found.ram[expert])) for expert in sorted(stay)]
            self._credit = min(1.0, self._credit + len(stay) * EXCHANGES)
            if self._credit == 1.0:
                best = self._layers[layer].strongest(stay)
                if self._promote(layer, best, found.ram[best], counts) is not None:
                    self._credit = 0.0

    def _arrived(self, layer: int, expert: int, found: Lookup, counts: Mapping[int, int]) -> Iterator[Group]:
        """One that was read into RAM."""
        index = found.to_ram[expert]
        self._layers[layer].filled(expert)
        if cheaper(counts[expert], self._records[layer].size, self.rates):
            yield from self._copied(layer, expert, index, counts)
        else:
            yield [(expert, self._in_ram(layer, index))]

    def _streamed(
        self, layer: int, expert: int, data: Expert | Streamed, found: Lookup, counts: Mapping[int, int]
    ) -> Iterator[Group]:
        """One that passes through, or has its place in the device."""
        record = self._records[layer]
        if expert in found.to_device:
            index = found.to_device[expert]
            self._upload_parts(index, record, data)
            self._layers[layer].filled(expert)
            yield from self._on_device(layer, {expert: index})
        elif cheaper(counts[expert], record.size, self.rates):
            with self._borrowed() as index:
                self._upload_parts(index, record, data)
                yield from self._on_device(layer, {expert: index})
        else:
            yield [(expert, data)]

    def _on_device(self, layer: int, slots: Mapping[int, int]) -> Iterator[Group]:
        yield [(expert, as_expert(self._records[layer], self._copies.ready(slot))) for expert, slot in slots.items()]
        for slot in slots.values():
            self._copies.used(slot)

    def _in_ram(self, layer: int, index: int) -> Expert | Streamed:
        self._copies.wait(index)
        return as_expert(self._records[layer], self._ram.slot(index))

    def _copied(self, layer: int, expert: int, index: int, counts: Mapping[int, int]) -> Iterator[Group]:
        """One from RAM, computed on the device; there to stay if another is worth less."""
        if (slot := self._promote(layer, expert, index, counts)) is not None:
            yield from self._on_device(layer, {expert: slot})
            return
        with self._borrowed() as slot:
            self._upload(slot, index)
            yield from self._on_device(layer, {expert: slot})

    def _promote(self, layer: int, expert: int, index: int, asked: Collection[int]) -> int | None:
        """Let it change places with the least valuable expert in the device. The slot it gets; None if it gets none."""
        places = self._layers[layer]
        if (leaving := places.weaker(expert, asked)) is None:
            return None
        slot = self._spare.popleft()
        self._follow()
        self._upload(slot, index)
        freed = places.exchange(expert, leaving, slot)
        self._copies.download(freed, self._ram.slot(index), index)
        self._spare.append(freed)
        if layer in self._tables:
            self._copies.ready(slot)  # whoever reads the table does not ask
            self._update(layer)
        return slot

    def _follow(self) -> None:
        """Slots that were read by the table are not known to the copies: these wait for all that computes."""
        if self._by_table:
            self._copies.follow()
            self._by_table = False

    @contextmanager
    def _borrowed(self) -> Iterator[int]:
        slot = self._spare.popleft()
        self._follow()
        try:
            yield slot
        finally:
            self._spare.append(slot)

    def _upload(self, slot: int, index: int) -> None:
        self._copies.upload(slot, self._ram.slot(index), index)
        self.statistics.bytes_copied += self._ram.size

    def _upload_parts(self, slot: int, record: Record, data: Expert | Streamed) -> None:
        self._copies.upload_parts(slot, _parts(record, data))
        self.statistics.bytes_copied += record.size

    def _count(self, found: Lookup) -> None:
        self.statistics.hits += len(found.device) + len(found.ram)
        self.statistics.device_hits += len(found.device)
        self.statistics.misses += len(found.to_device) + len(found.to_ram) + len(found.passing)


def _parts(record: Record, data: Expert | Streamed) -> Parts:
    """The bytes of an expert, wherever they are, and where in its record each run of them belongs."""
    if isinstance(data, tuple):
        for field, matrix in zip(record.fields.values(), data, strict=True):
            yield field.offset, _bytes(matrix)
    else:
        assert isinstance(data, PiecewiseExpert), "what is streamed comes in pieces"
        for piece, matrices in data.pieces():
            for (offset, _), matrix in zip(piece.spans, matrices, strict=True):
                yield offset, _bytes(matrix)


def _bytes(matrix: Matrix) -> Tensor:
    return matrix.data if isinstance(matrix, Packed) else matrix.view(-1).view(torch.uint8)
