"""What goes to a device and back, expert by expert: where each is computed, what is copied, when two change places."""

from __future__ import annotations

import pytest
import torch

from moecli.experts.arena import CPU, Arena
from moecli.experts.gpu_offloaded import Capacity, GpuOffloadedExperts
from moecli.kernels.blocking import STAGED
from moecli.kernels.linear import Packed
from moecli.planning.rates import Pace, Rates
from moecli.store.packed import PackedStore
from tests.support.stores import Stores

QUICK, SLOW = Pace(1e15, 0.0), Pace(1.0, 1.0)
COPY, STAY = Rates(1e15, SLOW, QUICK), Rates(1.0, QUICK, SLOW)
LAYER = 1


@pytest.fixture
def store(stores: Stores) -> PackedStore:
    """Five experts in each of two layers."""
    return stores("mixtral", "q4")


def beside_ram(store: PackedStore, rates: Rates, on_device: int = 1, in_ram: int = 2) -> GpuOffloadedExperts:
    """So many of each layer's experts have their place there; the others pass through."""
    capacity = Capacity(CPU, torch.float32, 2 * on_device, 2 * in_ram)
    return GpuOffloadedExperts(store.spec, store.layout.records, capacity, "lru", store=store, rates=rates)


def place(experts: GpuOffloadedExperts, matrix: Packed) -> tuple[str, int] | str:
    """Which slot a matrix lies in."""

    def index(arena: Arena) -> int:
        return (matrix.data.data_ptr() - arena._data.data_ptr()) // arena.size if len(arena) else -1

    for name, arena in (("device", experts._device), ("ram", experts._ram)):
        if 0 <= index(arena) < len(arena):
            return name, index(arena)
    return "staging"


def one_pass(experts: GpuOffloadedExperts, *wanted: int) -> list[list[tuple[int, object]]]:
    """Its groups: experts, and where each is computed."""
    return [
        [(expert, place(experts, matrices[0])) for expert, matrices in group]
        for group in experts.iter_ready(LAYER, dict.fromkeys(wanted, 1), 1)
    ]


def counted(experts: GpuOffloadedExperts) -> tuple[int, ...]:
    found = experts.statistics
    return found.hits, found.device_hits, found.misses, found.bytes_read, found.bytes_copied


DEVICE, RAM = STAGED + 1, 2  # the first slots of the second layer
SPARE = range(STAGED)


def test_what_stays_is_computed_where_it_lies(store: PackedStore) -> None:
    experts, record = beside_ram(store, STAY), store.record(LAYER)
    first = one_pass(experts, 0, 1, 2, 3)
    assert sorted(first[:2]) == [[(1, ("ram", RAM))], [(2, ("ram", RAM + 1))]]  # in the order in which they arrive
    assert first[2:] == [[(0, ("device", DEVICE))], [(3, "staging")]]
    assert counted(experts) == (0, 0, 4, 4 * record.stride, record.size)
    second = one_pass(experts, 0, 1, 2, 3)
    assert second == [[(0, ("device", DEVICE))], [(1, ("ram", RAM)), (2, ("ram", RAM + 1))], [(3, "staging")]]
    assert counted(experts) == (3, 1, 5, 5 * record.stride, record.size)
    assert experts.statistics.budget_bytes == 6 * record.stride


def test_what_is_quicker_there_is_copied_to_the_device(store: PackedStore) -> None:
    """Into spare slots, as nobody leaves his place to one of the same pass."""
    experts, record = beside_ram(store, COPY), store.record(LAYER)
    first = one_pass(experts, 0, 1, 2, 3)
    assert sorted(group[0][0] for group in first[:2]) == [1, 2]
    assert all(where[0] == "device" and where[1] in SPARE for group in first[:2] for _, where in group)
    assert first[2] == [(0, ("device", DEVICE))] and first[3][0][0] == 3 and first[3][0][1][1] in SPARE
    assert counted(experts) == (0, 0, 4, 4 * record.stride, 2 * record.stride + 2 * record.size)
    second = one_pass(experts, 0, 1, 2, 3)
    assert [[expert for expert, _ in group] for group in second] == [[0], [1], [2], [3]]
    assert second[0] == [(0, ("device", DEVICE))]
    assert all(where[1] in SPARE for group in second[1:] for _, where in group)
    assert counted(experts) == (3, 1, 5, 5 * record.stride, 4 * record.stride + 3 * record.size)


def test_a_copied_expert_takes_the_place_of_one_that_is_worth_less(store: PackedStore) -> None:
    experts, stride = beside_ram(store, COPY), store.record(LAYER).stride
    one_pass(experts, 0, 1, 2)
    before = experts.statistics.bytes_copied
    (((expert, (arena, slot)),),) = one_pass(experts, 2)
    assert (expert, arena) == (2, "device") and slot in SPARE  # which is its own from now on
    assert experts.statistics.bytes_copied == before + stride
    assert one_pass(experts, 2) == [[(2, ("device", slot))]]
    (other,) = set(SPARE) - {slot}
    (((_, there),),) = one_pass(experts, 0)  # in the place that 2 had in RAM; 2 leaves the device for it
    assert there == ("device", other)
    assert one_pass(experts, 0) == [[(0, ("device", other))]]
    assert experts.statistics.bytes_copied == before + 2 * stride
    assert sorted(experts._spare) == [slot, DEVICE] and counted(experts)[:3] == (4, 2, 3)


def test_two_change_places_for_every_32_that_are_computed_in_ram(store: PackedStore) -> None:
    """Of those computed then the most valuable, once there is one in the device that is worth less."""
    experts, stride, exchanges = beside_ram(store, STAY), store.record(LAYER).stride, []
    one_pass(experts, 0, 1, 2)
    for number in range(1, 83):
        before = experts.statistics.bytes_copied
        one_pass(experts, *((1, 2) if number <= 48 else (2,) if number <= 49 else (0,)))
        if copied := experts.statistics.bytes_copied - before:
            exchanges.append((number, copied))
    assert exchanges == [(16, stride), (49, stride), (81, stride)]
    assert one_pass(experts, 0)[0][0][1][0] == "device"
    assert one_pass(experts, 1, 2) == [[(expert, ("ram", slot)) for expert, slot in ((1, RAM + 1), (2, RAM))]]


@pytest.mark.parametrize(("on_device", "in_ram"), [(0, 5), (5, 0), (2, 3), (0, 0), (1, 1)])
def test_every_place_is_taken_before_anybody_passes_through(on_device: int, in_ram: int, store: PackedStore) -> None:
    experts = beside_ram(store, STAY, on_device, in_ram)
    for _ in range(2):
        one_pass(experts, 0, 1, 2, 3, 4)
    places = on_device + in_ram
    assert counted(experts)[:3] == (places, on_device, 5 + 5 - places)
    where = [slot for group in one_pass(experts, 0, 1, 2, 3, 4) for _, slot in group]
    assert where.count("staging") == 5 - places
    taken = [slot for slot in where if slot != "staging"]
    assert sorted(taken) == sorted(
        [*(("device", STAGED + on_device + n) for n in range(on_device)), *(("ram", in_ram + n) for n in range(in_ram))]
    )
