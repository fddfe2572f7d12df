"""What a read did not bring is never taken for an expert: it failed, or Ctrl-C came first; it is read anew."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path

import pytest
import torch

from moecli.errors import CheckpointError
from moecli.experts.arena import CPU
from moecli.experts.gpu_offloaded import Capacity, GpuOffloadedExperts
from moecli.experts.offloaded import OffloadedExperts
from moecli.experts.readers import PendingRead, Range, Readers
from moecli.experts.store import ExpertStore
from moecli.kernels.linear import Packed
from moecli.planning.rates import Pace, Rates
from moecli.store.expert_record import PAGE
from moecli.store.packed import PackedStore
from tests.support.checkpoints import make, write
from tests.support.stores import experts_in, packed

LAYER = 1
WANTED = {0: 1, 2: 1, 3: 1}
Make = Callable[[PackedStore], ExpertStore]


class Interrupted(Readers):
    """Ctrl-C comes before the read with one of these numbers is begun."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self._numbers, self._asked = numbers, 0

    def read(self, ranges: Iterable[Range], arrived: Callable[[PendingRead], None] | None = None) -> PendingRead:
        self._asked += 1
        if self._asked in self._numbers:
            raise KeyboardInterrupt
        return super().read(ranges, arrived)


class Slow(Readers):
    """Each segment takes longer than the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[PendingRead] = []
        self._turn = count()

    def read(self, ranges: Iterable[Range], arrived: Callable[[PendingRead], None] | None = None) -> PendingRead:
        self.begun.append(super().read(ranges, arrived))
        return self.begun[-1]

    def _read(self, segment: Range, pending: PendingRead) -> None:
        time.sleep(0.1 * next(self._turn))
        super()._read(segment, pending)


def in_ram(store: PackedStore) -> OffloadedExperts:
    return OffloadedExperts(store, experts_in(store), "lru")


def on_device(store: PackedStore, device: int, ram: int) -> GpuOffloadedExperts:
    """The device is RAM too."""
    rates, capacity = Rates(1.0, Pace(1e15, 0.0), Pace(1.0, 1.0)), Capacity(CPU, torch.float32, device, ram)
    return GpuOffloadedExperts(store.spec, store.layout.records, capacity, "lru", store=store, rates=rates)


def on_both(store: PackedStore) -> GpuOffloadedExperts:
    """The first half of a layer has its place in the device."""
    half = experts_in(store) // 2
    return on_device(store, half, experts_in(store) - half)


def beside_device(store: PackedStore) -> GpuOffloadedExperts:
    """All of them have their place in RAM."""
    return on_device(store, 0, experts_in(store))


def nowhere(store: PackedStore) -> OffloadedExperts:
    """No slot: all of them pass through staging."""
    return OffloadedExperts(store, 0, "lru")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its records take several pages."""
    folder = tmp_path_factory.mktemp("wide")
    write(make("mixtral", intermediate_size=200), folder / "model")
    return packed(folder / "model", folder / "store", "q4").folder


@pytest.fixture
def store(tmp_path: Path, whole: Path) -> PackedStore:
    """One that may be damaged."""
    return PackedStore.open(shutil.copytree(whole, tmp_path / "store"))


def read(experts: ExpertStore, wanted: dict[int, int]) -> dict[int, list[bytes]]:
    """The bytes of every matrix that a pass gets, by expert."""
    found = {}
    for group in experts.iter_ready(LAYER, wanted, 1):
        for expert, matrices in group:
            assert isinstance(matrices, tuple)
            found[expert] = [bytes(each.data.numpy()) for each in matrices if isinstance(each, Packed)]
    return found


def stored(store: PackedStore, wanted: dict[int, int]) -> dict[int, list[bytes]]:
    """The same, from the file."""
    lies, record = store.experts(LAYER), store.record(LAYER)
    content = lies.path.read_bytes()[lies.offset :]
    fields = record.fields.values()
    return {n: [content[n * record.stride + f.offset :][: f.size] for f in fields] for n in wanted}


def cut_short(store: PackedStore, size: int = 0) -> Callable[[], object]:
    """Take all records from a file but the first `size` bytes; the function brings them back."""
    path = store.experts(LAYER).path
    content = path.read_bytes()
    os.truncate(path, store.experts(LAYER).offset + size)

    def restore() -> None:
        with path.open("r+b") as file:
            file.write(content)

    return restore


@pytest.mark.parametrize("make", [in_ram, on_both, nowhere])
def test_what_could_not_be_read_is_read_again(make: Make, store: PackedStore) -> None:
    experts = make(store)
    restore = cut_short(store)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="cut short"):
            read(experts, WANTED)
    restore()
    assert read(experts, WANTED) == stored(store, WANTED)
    assert experts.statistics.hits == 0
    assert read(experts, WANTED) == stored(store, WANTED)
    assert experts.statistics.hits == (0 if make is nowhere else len(WANTED))


@pytest.mark.parametrize("make", [in_ram, on_both])
def test_what_was_there_before_others_failed_is_still_there(make: Make, store: PackedStore) -> None:
    experts = make(store)
    read(experts, {0: 1})
    restore = cut_short(store)
    with pytest.raises(CheckpointError):
        read(experts, {0: 1, 1: 1})
    restore()
    before = experts.statistics.hits
    assert read(experts, {0: 1, 1: 1}) == stored(store, {0: 1, 1: 1})
    assert experts.statistics.hits == before + 1


@pytest.mark.parametrize("number", [1, 2, 3])
def test_ctrl_c_before_a_read_was_begun(number: int, store: PackedStore) -> None:
    experts = OffloadedExperts(store, experts_in(store), "lru", Interrupted(number))
    with pytest.raises(KeyboardInterrupt):
        read(experts, WANTED)
    assert read(experts, WANTED) == stored(store, WANTED)


ONE_SLOT: dict[str, Make] = {
    "ram": lambda store: OffloadedExperts(store, len(store.spec.mixtures), "lru"),
    "beside a device": lambda store: on_device(store, 0, len(store.spec.mixtures)),
    "device": lambda store: on_device(store, len(store.spec.mixtures), 0),
}


@pytest.mark.parametrize("make", ONE_SLOT.values(), ids=ONE_SLOT)
def test_a_slot_that_changed_hands_in_vain_is_nobodys(make: Make, store: PackedStore) -> None:
    """The one who lost it was thrown out; of the one who got it only the first page arrived."""
    experts = make(store)
    stride = store.record(LAYER).stride
    for expert, other in ((0, 1), (1, 2), (2, 0)):
        assert read(experts, {expert: 1}) == stored(store, {expert: 1})
        restore = cut_short(store, other * stride + PAGE)
        with pytest.raises(CheckpointError):
            read(experts, {other: 1})
        restore()
        assert read(experts, {expert: 1}) == stored(store, {expert: 1})
        assert read(experts, {other: 1, expert: 1}) == stored(store, {other: 1, expert: 1})


def test_ctrl_c_between_two_that_arrive(store: PackedStore) -> None:
    for way in (in_ram, on_both):
        experts = way(store)
        ready = experts.iter_ready(LAYER, WANTED, 1)
        next(ready)
        with pytest.raises(KeyboardInterrupt):
            ready.throw(KeyboardInterrupt)
        assert read(experts, WANTED) == stored(store, WANTED)


@pytest.mark.parametrize("make", [in_ram, on_both, beside_device, nowhere])
def test_nothing_is_on_its_way_once_a_pass_was_left(make: Make, store: PackedStore, monkeypatch) -> None:
    """Bytes that come late would be written over those of the next pass."""
    readers = Slow()
    for room in ("offloaded", "gpu_offloaded"):
        monkeypatch.setattr(f"moecli.experts.{room}.readers_of", lambda records: readers)
    ready = make(store).iter_ready(LAYER, WANTED, 1)
    next(ready)
    ready.close()
    assert len(readers.begun) == len(WANTED) and all(each.done.is_set() for each in readers.begun)


def test_seconds_of_reading_count_once_however_many_read(store: PackedStore) -> None:
    experts = OffloadedExperts(store, 0, "lru", Slow())
    for slowest in (0.2, 0.5):
        before, began = experts.statistics.read_s, time.perf_counter()
        read(experts, WANTED)
        assert slowest <= experts.statistics.read_s - before <= time.perf_counter() - began
