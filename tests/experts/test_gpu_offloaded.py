"""A second arena in the role of a device: every split of the experts and of the work gives the same bits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moecli.engine.decoder import Decoder
from moecli.engine.load import open_model
from moecli.engine.weights import store_weights
from moecli.experts.arena import CPU, Arena
from moecli.experts.copies import Copies, Parts, copies_for
from moecli.experts.gpu_offloaded import Capacity, GpuOffloadedExperts
from moecli.experts.policies import POLICIES
from moecli.experts.rates import measure
from moecli.experts.slot_map import Place, SlotMap
from moecli.model.spec import Activation
from moecli.planning.rates import Pace, Rates
from moecli.store import expert_record
from moecli.store.packed import PackedStore
from tests.support.checkpoints import make, prompt, write
from tests.support.running import greedy, load, score
from tests.support.stores import Stores, decoder, experts_in, packed, split_plan

pytestmark = pytest.mark.slow

FAMILIES = ("mixtral", "deepseek_v2", "dbrx", "gpt_oss", "switch_transformers")
IDS = prompt(40)
QUICK, SLOW = Pace(1e15, 0.0), Pace(1.0, 1.0)
COPY = Rates(1e15, SLOW, QUICK)
STAY = Rates(1.0, QUICK, SLOW)
BOTH = Rates(1e9, Pace(1e9, 0.0), QUICK)  # an expert copied for each one computed in RAM


def gpu_offloaded(
    store: PackedStore,
    on_device: int,
    in_ram: int,
    rates: Rates,
    policy: str = "adaptive",
    copies: Callable[[Arena, torch.device], Copies] = copies_for,
) -> Decoder:
    dense = store_weights(store)
    capacity = Capacity(CPU, dense.dtype, on_device, in_ram)
    experts = GpuOffloadedExperts(
        store.spec, store.layout.records, capacity, policy, store=store, rates=rates, copies=copies
    )
    return Decoder(store.spec, dense, experts, 256)


def places(count: int) -> list[tuple[int, int]]:
    """How many of `count` experts lie in the device and in RAM."""
    some = count // 3
    return [(0, 0), (0, count), (count, 0), (some, 0), (some, count - some), (some, some)]


@pytest.mark.parametrize("rates", [COPY, STAY, BOTH])
@pytest.mark.parametrize(("family", "dtype"), [*product(FAMILIES, ["q4"]), ("mixtral", "bf16"), ("mixtral", "nf4")])
def test_every_split_gives_the_same_bits(family: str, dtype: str, rates: Rates, stores: Stores) -> None:
    store = stores(family, dtype)
    resident = decoder(store, None)
    logits, ids = score(resident, IDS), greedy(resident, IDS, 8)
    for on_device, in_ram in places(experts_in(store)):
        found = gpu_offloaded(store, on_device, in_ram, rates)
        assert torch.equal(score(found, IDS), logits)
        assert greedy(found, IDS, 8) == ids


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_gives_the_same_bits(policy: str, stores: Stores) -> None:
    store = stores("deepseek_v2", "q8")
    for on_device, in_ram, rates in ((2, 4, COPY), (4, 2, BOTH)):
        found = gpu_offloaded(store, on_device, in_ram, rates, policy)
        for chunk in (40, 1):
            assert torch.equal(score(found, IDS, chunk), score(decoder(store, None), IDS, chunk))


class LateCopies(Copies):
    """Copies in the order they are begun, as on a stream, and not before somebody waits for one of them.

    A slot that is being computed with is not written to.
    """

    def __init__(self, slots: Arena, _: torch.device) -> None:
        super().__init__(slots)
        self._begun: deque[tuple[int, int, Callable[[], None]]] = deque()  # device slot, host slot, the copy
        self._in_use: set[int] = set()

    def upload(self, slot: int, source: Tensor, host: int) -> None:
        assert slot not in self._in_use
        copy = super().upload
        self._begun.append((slot, host, lambda: copy(slot, source, host)))

    def upload_parts(self, slot: int, parts: Parts) -> None:
        assert slot not in self._in_use
        self._wait([True] * len(self._begun))
        super().upload_parts(slot, parts)

    def download(self, slot: int, target: Tensor, host: int) -> None:
        assert slot not in self._in_use
        copy = super().download
        self._begun.append((slot, host, lambda: copy(slot, target, host)))

    def ready(self, slot: int) -> Tensor:
        self._in_use.add(slot)
        self._wait([each[0] == slot for each in self._begun])
        return super().ready(slot)

    def used(self, slot: int) -> None:
        self._in_use.remove(slot)

    def wait(self, host: int) -> None:
        self._wait([each[1] == host for each in self._begun])

    def synchronize(self) -> None:
        self._wait([True] * len(self._begun))
        self._in_use.clear()

    def _wait(self, wanted: list[bool]) -> None:
        while any(wanted):
            self._begun.popleft()[2]()
            wanted.pop(0)


@pytest.mark.parametrize("rates", [COPY, STAY, BOTH])
def test_nothing_is_computed_with_bytes_on_their_way(rates: Rates, stores: Stores) -> None:
    store = stores("dbrx", "q4")
    for (on_device, in_ram), chunk in product(places(experts_in(store)), (40, 1)):
        found = gpu_offloaded(store, on_device, in_ram, rates, copies=LateCopies)
        assert torch.equal(score(found, IDS, chunk), score(decoder(store, None), IDS, chunk))


def test_large_experts_pass_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(make("mixtral", hidden_size=128, intermediate_size=448), tmp_path / "model")
    store = packed(folder, tmp_path / "store")
    monkeypatch.setattr(expert_record, "PIECE", 2**15)
    monkeypatch.setattr("moecli.formats.blocks._WEIGHTS", 2**13)
    assert len(store.record(0).pieces()) > 1
    for (on_device, in_ram), rates in product([(0, 0), (3, 2), (10, 0), (0, 10)], (COPY, STAY)):
        found = gpu_offloaded(store, on_device, in_ram, rates, copies=LateCopies)
        for chunk in (40, 1):
            assert torch.equal(score(found, IDS, chunk), score(decoder(store, None), IDS, chunk))


def test_the_work_goes_where_it_is_cheaper(stores: Stores) -> None:
    store = stores("mixtral", "q4")
    size = store.record(0).stride
    for rates in (COPY, STAY, BOTH):
        found = gpu_offloaded(store, 2, experts_in(store) - 2, rates)
        statistics = score(found, IDS) is not None and found.experts.statistics
        read = statistics.bytes_read, statistics.misses
        assert read == (experts_in(store) * size, experts_in(store))
        began = statistics.bytes_copied
        score(found, IDS[:8], 1)
        copied = (statistics.bytes_copied - began) // size
        in_ram = statistics.hits - statistics.device_hits
        assert (statistics.bytes_read, statistics.misses) == read  # all of it has its place
        assert copied == in_ram if rates is COPY else copied <= 1 if rates is STAY else 0 < copied < in_ram


def test_what_is_used_most_moves_to_the_device(stores: Stores) -> None:
    """Where copies are too dear for one token, a few exchanges are made for those to come."""
    store = stores("dbrx", "q4")
    need = 2 * 3  # one token's experts: 3 in each of 2 layers
    found = gpu_offloaded(store, need, experts_in(store) - need, STAY)
    statistics = found.experts.statistics
    for token in (5, 6, 7):
        copied = statistics.bytes_copied
        score(found, [token] * 150, 1)
        hits, on_device = statistics.hits, statistics.device_hits
        score(found, [token] * 10, 1)
        assert statistics.device_hits - on_device == statistics.hits - hits == 10 * need
    assert 0 < statistics.bytes_copied - copied <= need * store.record(0).stride
    assert statistics.misses <= experts_in(store)


def test_an_interrupted_pass_leaves_no_wrong_bytes_behind(stores: Stores) -> None:
    store = stores("mixtral", "q4")
    for rates in (COPY, STAY):
        found = gpu_offloaded(store, 3, 3, rates, copies=LateCopies)
        experts = found.experts
        assert isinstance(experts, GpuOffloadedExperts)
        for layer, wanted, steps in product((0, 1), ({0: 1, 1: 1, 2: 1}, {3: 1, 4: 1}), (1, 2)):
            ready = experts.iter_ready(layer, wanted, 1)
            for _ in range(steps):
                next(ready)
            with pytest.raises(KeyboardInterrupt):
                ready.throw(KeyboardInterrupt)
        assert torch.equal(score(found, IDS, 1), score(decoder(store, None), IDS, 1))


@pytest.mark.parametrize("dtype", ["q4", "bf16", "fp32", "int8"])
def test_a_checkpoint_is_converted_into_both_arenas(dtype: str, tmp_path: Path) -> None:
    """By a plan, with measured rates; as if it were all in RAM."""
    model = open_model(write(make("qwen2_moe"), tmp_path))
    plan = split_plan(model.spec, dtype, 4)
    count = plan.memory.expert_count
    assert (plan.device.experts, plan.ram.experts) == (4, count - 4)
    progress: list[tuple[int, int]] = []
    found = model.decoder(plan, progress=lambda *done: progress.append(done))
    dense, size = plan.memory.dense.bytes, plan.memory.slot_bytes
    assert {total for _, total in progress} == {dense + count * size} and progress[0][0] > 0
    assert [done for done, _ in progress if done > dense] == [dense + (done + 1) * size for done in range(count)]
    assert progress == sorted(progress)
    assert torch.equal(score(found, IDS), score(load(tmp_path, dtype), IDS))
    assert greedy(found, IDS, 8) == greedy(load(tmp_path, dtype), IDS, 8)
    assert found.experts.statistics.budget_bytes == plan.device.expert_bytes + plan.ram.expert_bytes
    assert found.experts.statistics.misses == 0


def test_a_store_obeys_its_plan(stores: Stores) -> None:
    store = stores("dbrx", "q4")
    plan = split_plan(store.spec, "q4", 5)
    found = open_model(store.folder).decoder(plan)
    assert torch.equal(score(found, IDS), score(decoder(store, None), IDS))
    assert found.experts.statistics.budget_bytes == experts_in(store) * plan.memory.slot_bytes
    assert found.experts.statistics.bytes_copied > 0
    assert plan.fits and found.experts.statistics.misses <= experts_in(store)


def test_rates_by_hand(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """What 31 tokens more take, as a share of what the first takes."""
    record = stores("mixtral", "q4").record(0)
    slots, ram = Arena(1, record.stride), Arena(2, record.stride)
    for many, further in ((0.56, 0.1), (0.1, 0.0)):
        seconds = [0.5, 0.14, many]
        monkeypatch.setattr("moecli.experts.rates._fastest", lambda work, seconds=seconds: seconds.pop(0))
        pace = Pace(record.size / 0.14, pytest.approx(further * 3 / 3.1 if further else 0.0))
        found = measure(record, Activation.SILU, torch.float32, slots, ram, Copies(slots))
        assert found == Rates(ram.size / 0.5, pace, pace)


def test_places_by_hand() -> None:
    """One slot in the device and two in RAM, least recently used out."""
    slots = [Place(True, 7), Place(False, 3), Place(False, 4)]
    places = SlotMap(slots, POLICIES["lru"].new())
    found = places.find({10: 2, 11: 1}, 2)
    assert (found.to_device, found.to_ram) == ({10: 7}, {11: 3})  # the most used first
    assert places.find({10: 1}, 1).to_device == {10: 7}  # not there before its slot is filled
    places.filled(10)
    places.filled(11)
    found = places.find({11: 1}, 1)
    assert found.ram == {11: 3} and not found.device
    assert places.weaker(11, {11: 1}) == 10
    assert places.weaker(11, {10: 1, 11: 1}) is None  # asked for
    assert places.weaker(99, {}) is None  # worth no more
    assert places.exchange(11, 10, 0) == 7
    found = places.find({10: 1, 11: 1}, 1)
    assert (found.device, found.ram) == ({11: 0}, {10: 3})
    found = places.find({12: 1, 13: 1, 14: 1, 15: 1}, 1)
    assert len(found.passing) == 1 and sorted((*found.to_ram.values(), *found.to_device.values())) == [0, 3, 4]
