"""The table by which a device step finds experts on the device: true after every exchange with RAM."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moecli.experts.arena import CPU
from moecli.experts.gpu_offloaded import Capacity, GpuOffloadedExperts
from moecli.planning.rates import Pace, Rates
from tests.support.stores import Stores

STAY = Rates(1.0, Pace(1e15, 0.0), Pace(1.0, 1.0))  # copies are too dear for a few tokens
COPY = Rates(1e15, Pace(1.0, 1.0), Pace(1e15, 0.0))


def filled(stores: Stores, rates: Rates, on_device: int = 4, in_ram: int = 6) -> GpuOffloadedExperts:
    """Mixtral's five experts of two layers; each one's bytes are all its number, and 10 for each layer."""
    store = stores("mixtral", "q4")
    found = GpuOffloadedExperts(
        store.spec, store.layout.records, Capacity(CPU, torch.float32, on_device, in_ram), "lru", rates=rates
    )
    found.fill(lambda layer, expert, slot: slot.fill_(10 * layer + expert), lambda done, total: None)
    return found


def tells(experts: GpuOffloadedExperts, layer: int) -> dict[int, int]:
    """By expert what the table leads to: the first byte there."""
    slots = {experts._device.slot(index).data_ptr(): index for index in range(len(experts._device))}
    table = experts.records(layer)
    assert table is not None and table.dtype == torch.int64
    return {
        expert: int(experts._device.slot(slots[address])[0]) for expert, address in enumerate(table.tolist()) if address
    }


def use(experts: GpuOffloadedExperts, layer: int, expert: int) -> None:
    """A pass of several tokens."""
    list(experts.iter_ready(layer, {expert: 1}, 1))


def test_it_leads_to_the_experts_on_the_device(stores: Stores) -> None:
    experts = filled(stores, STAY)
    for layer in (0, 1):
        on_device = experts._layers[layer].residents
        assert len(on_device) == 2
        assert tells(experts, layer) == {expert: 10 * layer + expert for expert in on_device}


def test_a_prompt_that_exchanges_experts_changes_it(stores: Stores) -> None:
    """The table is the same tensor: a recorded step reads it by its address."""
    experts = filled(stores, STAY)
    table, before = experts.records(1), tells(experts, 1)
    coming = next(expert for expert in range(5) if expert not in before)
    for _ in range(100):
        use(experts, 1, coming)
    after = tells(experts, 1)
    assert coming in after and after.keys() != before.keys()
    assert after == {expert: 10 + expert for expert in experts._layers[1].residents}
    assert experts.records(1) is table
    assert tells(experts, 0).keys() == experts._layers[0].residents.keys()


def test_so_does_an_exchange_after_a_step(stores: Stores) -> None:
    """One for each 32 experts that were computed in RAM, the most valuable of them."""
    experts = filled(stores, STAY)
    table, before = experts.records(0), tells(experts, 0)
    coming = next(expert for expert in range(5) if expert not in before)
    steps = 0
    while experts.statistics.bytes_copied == 0:
        rest = experts.rest_of(0, {coming: 1}, 1)
        assert [expert for expert, _ in rest] == [coming] and tells(experts, 0) == before
        experts.settle(0, rest)
        steps += 1
    assert steps == 32
    assert coming in tells(experts, 0)
    assert tells(experts, 0) == {expert: expert for expert in experts._layers[0].residents}
    assert experts.records(0) is table
    assert experts.rest_of(0, {coming: 1}, 1) == []
    statistics = experts.statistics
    assert (statistics.hits, statistics.device_hits, statistics.misses) == (steps + 1, 1, 0)


def test_copies_wait_for_what_a_step_has_read_by_the_table(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """They know of no slot that was read without asking them: an exchange first waits for all of it."""
    experts, told = filled(stores, STAY), list[str]()
    upload = experts._copies.upload

    def uploaded(*arguments: Any) -> None:
        told.append("copied")
        upload(*arguments)

    monkeypatch.setattr(experts._copies, "follow", lambda: told.append("waited"))
    monkeypatch.setattr(experts._copies, "upload", uploaded)
    coming = next(expert for expert in range(5) if expert not in tells(experts, 0))
    while not told:
        experts.settle(0, experts.rest_of(0, {coming: 1}, 1))
    assert told == ["waited", "copied"]


def test_there_is_none_where_experts_are_copied_or_on_disk(stores: Stores) -> None:
    assert filled(stores, COPY).records(0) is None
    store = stores("mixtral", "q4")
    capacity = Capacity(CPU, torch.float32, 4, 2)
    experts = GpuOffloadedExperts(store.spec, store.layout.records, capacity, "lru", store=store, rates=STAY)
    for expert in range(5):
        use(experts, 0, expert)
    assert experts.records(0) is None
    everything = filled(stores, COPY, 10, 0)
    assert len(tells(everything, 0)) == 5
