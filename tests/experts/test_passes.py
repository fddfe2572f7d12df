"""What one pass gets of a store in RAM beside a disk: hits in one group, then arrivals, then what passes through."""

from __future__ import annotations

import pytest

from moecli.experts.offloaded import OffloadedExperts
from moecli.experts.policies import POLICIES
from moecli.experts.readers import Readers
from moecli.kernels.linear import Packed
from moecli.store.packed import PackedStore
from tests.support.stores import Stores


@pytest.fixture
def store(stores: Stores) -> PackedStore:
    """Five experts in each of two layers."""
    return stores("mixtral", "q4")


def one_pass(experts: OffloadedExperts, layer: int, *wanted: int) -> list[list[tuple[int, int | str]]]:
    """Its groups: experts, and the slot that each is computed from."""
    arena, groups = experts._arena, []
    for group in experts.iter_ready(layer, dict.fromkeys(wanted, 1), 1):
        groups.append([])
        for expert, matrices in group:
            assert isinstance(matrices, tuple) and isinstance(matrices[0], Packed)
            slot = (matrices[0].data.data_ptr() - arena._data.data_ptr()) // arena.size if len(arena) else -1
            groups[-1].append((expert, slot if 0 <= slot < len(arena) else "staging"))
    return groups


def test_a_pass_by_hand(store: PackedStore) -> None:
    """Five slots: three of the first layer, then two of the second."""
    stride, experts = store.record(0).stride, OffloadedExperts(store, 5, "lru", readers := Readers(1))
    found = experts.statistics
    assert found.budget_bytes == 5 * stride and experts.dtype == "q4" and experts.addresses(0) is None
    assert one_pass(experts, 1, 0, 2, 4) == [[(0, 3)], [(2, 4)], [(4, "staging")]]
    assert (found.hits, found.misses, found.bytes_read) == (0, 3, 3 * stride)
    assert one_pass(experts, 1, 4, 0, 2) == [[(0, 3), (2, 4)], [(4, "staging")]]
    assert (found.hits, found.misses, found.bytes_read) == (2, 4, 4 * stride)
    assert one_pass(experts, 0, 1) == [[(1, 0)]] == one_pass(experts, 0, 1)
    assert one_pass(experts, 1, 3) == [[(3, 3)]]  # in the place of the lower number of two as old
    assert one_pass(experts, 1, 0, 2) == [[(2, 4)], [(0, 3)]]
    assert (found.hits, found.misses, found.bytes_read) == (4, 7, 7 * stride)
    readers.close()


@pytest.mark.parametrize("slots", [0, 1, 9, 10, 99])
@pytest.mark.parametrize("policy", POLICIES)
def test_what_has_a_slot_is_read_once(slots: int, policy: str, store: PackedStore) -> None:
    experts, held = OffloadedExperts(store, slots, policy), min(slots, 10)
    for _ in range(3):
        for layer in (0, 1):
            groups = one_pass(experts, layer, 0, 1, 2, 3, 4)
            assert sorted(expert for group in groups for expert, _ in group) == [0, 1, 2, 3, 4]
    found = experts.statistics
    assert (found.hits, found.misses) == (2 * held, 30 - 2 * held)
    assert found.bytes_read == found.misses * store.record(0).stride
    assert found.budget_bytes == slots * store.record(0).stride
    assert found.wait_s > 0 and 0 < found.read_s < 60


def test_experts_of_a_pass_that_was_left_are_read_again(store: PackedStore) -> None:
    experts = OffloadedExperts(store, 10, "lru")
    groups = experts.iter_ready(0, dict.fromkeys((0, 1, 2), 1), 1)
    next(groups)
    groups.close()
    assert experts.statistics.misses == 3
    hits = experts.statistics.hits
    one_pass(experts, 0, 0, 1, 2)
    assert experts.statistics.hits == hits + 1  # the one that had arrived
    one_pass(experts, 0, 0, 1, 2)
    assert experts.statistics.hits == hits + 4
