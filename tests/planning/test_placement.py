"""Placement: nothing is lost, budgets are kept, and more memory never hurts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecli.kernels.blocking import STAGED
from moecli.model.spec import Mixture
from moecli.planning.memory import (
    DEVICE_CONTEXT,
    estimate_memory,
    layerwise_memory,
    read_bytes_per_token,
    scored_at_once,
)
from moecli.planning.placement import (
    Reader,
    Tier,
    fit_layerwise,
    fit_side_by_side,
    largest_context,
    least_device,
    place,
)
from moecli.planning.speed import bytes_per_token
from moecli.store.expert_record import STAGING, mixture_record, staging_size
from tests.support.specs import spec_of

NAMES = ("mixtral", "dbrx", "grok-1", "deepseek-v2", "olmoe", "gpt-oss-20b", "llama-2-70b", "switch-base-8", "jamba")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@given(ram=st.integers(0, 2**41), device=st.none() | st.integers(0, 2**40), context=st.integers(1, 10_000))
def test_placement_loses_nothing_and_keeps_to_its_budgets(name, ram, device, context):
    need = estimate_memory(spec_of(name), "bf16", context)
    placed = place(need, ram, device)
    assert placed.device.experts + placed.ram.experts + placed.disk.experts == need.expert_count
    assert placed.device.dense + placed.ram.dense + placed.disk.dense == need.dense.bytes
    assert placed.device.dense == 0 or placed.ram.dense == placed.disk.dense == 0
    assert placed.disk.dense in ((0,) if placed.fits or placed.device.dense else (0, need.table))
    assert placed.device.kv + placed.ram.kv == need.kv.bytes
    if device is not None:
        assert placed.device.total <= device
    if placed.ram.experts:
        assert placed.ram.total <= ram
    if placed.fits:
        assert placed.disk.experts == 0 and placed.ram.total <= ram
    assert placed.least_ram <= placed.full_ram
    assert place(need, placed.full_ram, device).fits
    assert not place(need, placed.full_ram - 1, device).fits


@pytest.mark.parametrize("name", NAMES)
def test_every_byte_read_comes_from_somewhere(name):
    spec = spec_of(name)
    need = estimate_memory(spec, "bf16", 2)
    read = bytes_per_token(spec, place(need, 100 << 30, 40 << 30))
    assert sum(read.values()) == pytest.approx(read_bytes_per_token(spec, "bf16") + need.kv.bytes / 2)


@pytest.mark.parametrize("on_device", [None, 0, 10])
@pytest.mark.parametrize("name", ["mixtral", "olmoe", "deepseek-v2"])
def test_experts_from_disk_pass_through_buffers_that_are_planned(name, on_device):
    spec = spec_of(name)
    need = estimate_memory(spec, "q4", 1000)
    records = [mixture_record(spec, layer.ffn, "q4") for layer in spec.layers if isinstance(layer.ffn, Mixture)]
    assert need.staging == STAGING * max(staging_size(record) for record in records) > 0
    device = None if on_device is None else least_device(need) + on_device * need.slot_bytes
    streamed = place(need, 0, device)
    assert streamed.ram.staging == need.staging and streamed.ram.total == streamed.least_ram
    without = streamed.ram.dense + streamed.ram.kv + streamed.ram.activations + streamed.ram.process
    assert streamed.least_ram == without + need.staging
    one_more = place(need, streamed.least_ram + need.slot_bytes, device)
    assert one_more.ram.experts == 1 and one_more.ram.total == streamed.least_ram + need.slot_bytes
    assert place(need, streamed.least_ram + need.slot_bytes - 1, device).ram.experts == 0
    whole = place(need, streamed.full_ram, device)
    assert whole.ram.staging == 0 and whole.ram.total == whole.full_ram


def test_a_device_is_charged_for_experts_on_their_way():
    need = estimate_memory(spec_of("mixtral"), "q4", 1000)
    plan = place(need, 0, 1 << 40)
    assert plan.device.staging == STAGED * need.slot_bytes > 0
    assert plan.device.total == plan.device.expert_bytes + least_device(need)
    assert place(need, 0, least_device(need)).device.experts == 0
    assert place(need, 0, least_device(need)).device.dense == need.dense.bytes
    assert place(need, 0, least_device(need) - 1).device == Tier()
    assert place(need, 0, least_device(need) + need.slot_bytes).device.experts == 1


def test_the_largest_context_fits_and_the_next_does_not():
    spec = spec_of("mixtral")
    budget = estimate_memory(spec, "q4", 12_345).peak
    longest = largest_context(spec, "q4", 1, budget)
    assert 12_345 <= longest < spec.context_length
    assert not place(estimate_memory(spec, "q4", longest + 1), budget).fits
    assert largest_context(spec, "bf16", 1, 1 << 30) == 0
    assert largest_context(spec, "bf16", 1, 1 << 50) == spec.context_length


def test_the_slowest_place_that_anything_is_read_from():
    need = estimate_memory(spec_of("mixtral"), "q4", 1000)
    least = least_device(need)
    assert place(need, 1 << 40).runs_from == "ram"
    assert place(need, 1 << 40, 1 << 40).runs_from == "vram"
    assert place(need, 1 << 40, least).runs_from == "ram"
    assert place(need, place(need, 0, least).least_ram, least).runs_from == "disk"
    assert place(need, place(need, 0, least).least_ram - 1, least).runs_from is None


def test_a_model_without_experts_goes_to_a_device_as_a_whole():
    need = estimate_memory(spec_of("llama-2-70b"), "q4", 1000)
    plan = place(need, 1 << 40, least_device(need))
    assert plan.runs_from == "vram" and plan.device.dense == need.dense.bytes and plan.device.experts == 0


def test_texts_are_read_layer_by_layer_as_many_at_once_as_fit():
    spec = spec_of("mixtral")

    def tokens(ram: int, streams: bool = False) -> int:
        return fit_layerwise(spec, "q4", 300, 10_000, ram, streams).memory.block

    whole = place(layerwise_memory(spec, "q4", 300, 10_000), 0)
    half = place(layerwise_memory(spec, "q4", 300, 5_000), 0)
    assert (tokens(whole.full_ram), tokens(whole.full_ram - 1), tokens(half.full_ram)) == (10_000, 5_000, 5_000)
    assert (tokens(whole.least_ram, True), tokens(whole.least_ram - 1, True)) == (10_000, 5_000)
    assert tokens(whole.least_ram) == tokens(0) == 300


def test_models_that_read_side_by_side_share_one_budget_and_one_process():
    spec = spec_of("mixtral")
    readers = [Reader(spec, "q8", True), Reader(spec, "q4", True)]
    alone = [place(layerwise_memory(spec, each.dtype, 300, 300, scored_at_once(spec)), 0) for each in readers]
    process = alone[0].memory.process.bytes
    least = sum(plan.least_ram for plan in alone) - process
    blocks = []
    for ram in (least - 1, least, least + 2**30, 2**35, 2**38):
        plans = fit_side_by_side(readers, 300, 10_000, ram)
        assert all(plan.runs for plan in plans) == (ram >= least)
        assert ram < least or sum(plan.ram.total for plan in plans) - process <= ram
        blocks.append({plan.memory.block for plan in plans})
    assert blocks[1] == {300} and blocks[-1] == {10_000} and all(plan.fits for plan in plans)
    assert not all(
        plan.fits for plan in fit_side_by_side([replace(each, streams=False) for each in readers], 300, 300, least)
    )
    (one,) = fit_side_by_side(readers[:1], 300, 10_000, least)
    assert one.memory == layerwise_memory(spec, "q8", 300, one.memory.block, scored_at_once(spec))


def test_models_side_by_side_share_a_device():
    spec = spec_of("olmoe")
    needs = [layerwise_memory(spec, dtype, 300, 3000, scored_at_once(spec)) for dtype in ("q8", "q4")]
    least = sum(map(least_device, needs)) - DEVICE_CONTEXT
    for device, on_it in ((least - 1, 1), (least, 2), (2**40, 2)):
        readers = [Reader(spec, need.dtype, True, device) for need in needs]
        plans = fit_side_by_side(readers, 300, 3000, 2**38)
        assert sum(plan.device.dense > 0 for plan in plans) == on_it
        assert sum(max(0, plan.device.total - DEVICE_CONTEXT) for plan in plans) + DEVICE_CONTEXT <= device
