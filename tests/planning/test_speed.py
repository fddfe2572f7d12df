"""The forecast: bands in order, and never better on a slower machine or for more work."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.checkpoint import SHAPES
from moecli.kernels import built
from moecli.model import catalog
from moecli.model.families import read_spec
from moecli.planning.gpus import GPUS
from moecli.planning.memory import dense_read_bytes, estimate_memory
from moecli.planning.placement import fit, least_device, place
from moecli.planning.rates import Pace, Rates
from moecli.planning.speed import (
    Bandwidths,
    LinearThroughput,
    Sources,
    Throughput,
    bytes_per_token,
    estimate_throughput,
    expert_rates,
    places,
)
from tests.support.specs import spec_of

SPECS = {entry.alias: spec_of(entry.alias) for entry in catalog.known()}
RUNNABLE = [name for name, spec in SPECS.items() if not spec.unsupported]
KNOWN = Bandwidths(30e9, 2e9, linear=LinearThroughput(40e9, 500e9), sources=Sources("measured", "measured"))
STEP_S = 20e-6 if built.expected() else 0.2e-3  # of a layer, at best


def bounds(speed: Throughput) -> tuple[float, ...]:
    """All four, each better when larger."""
    return speed.low, speed.high, 1 / speed.first_token_low_s, 1 / speed.first_token_high_s


def never_better(slower: Throughput, faster: Throughput) -> bool:
    return all(a <= b * (1 + 1e-9) for a, b in zip(bounds(slower), bounds(faster), strict=True))


@pytest.mark.slow
@given(
    name=st.sampled_from(RUNNABLE),
    dtype=st.sampled_from(["bf16", "q8", "q4", "nf4"]),
    ram=st.integers(2**30, 2**42),
    device=st.none() | st.integers(2**30, 2**40),
    prompt=st.integers(1, 5000),
    held=st.integers(0, 6000),
)
def test_a_band_is_positive_and_in_order(name, dtype, ram, device, prompt, held):
    spec = SPECS[name]
    plan = place(estimate_memory(spec, dtype, 8192), ram, device)
    for bandwidths in (Bandwidths(), KNOWN):
        speed = estimate_throughput(spec, plan, bandwidths, prompt, held)
        assert 0 < speed.low < speed.middle < speed.high
        assert 0 < speed.first_token_low_s < speed.first_token_high_s
        expected = "measured" if bandwidths is KNOWN and not plan.device.dense else "typical"
        assert speed.evidence == expected


@pytest.mark.slow
@given(
    ram=st.integers(10 * 2**30, 2**37),
    prompt=st.integers(1, 4000),
    held=st.integers(0, 4000),
    more=st.integers(1, 4000),
    slower=st.floats(0.1, 1),
)
def test_nothing_that_takes_longer_is_forecast_to_be_faster(ram, prompt, held, more, slower):
    spec = SPECS["olmoe"]
    plan = fit(spec, "q4", 8192, ram // 8)
    speed = estimate_throughput(spec, plan, KNOWN, prompt, held)
    products = LinearThroughput(40e9 * slower, 500e9 * slower)
    for bandwidths in (
        replace(KNOWN, ram=30e9 * slower), replace(KNOWN, disk=2e9 * slower), replace(KNOWN, linear=products)
    ):  # fmt: skip
        assert never_better(estimate_throughput(spec, plan, bandwidths, prompt, held), speed)
    assert never_better(estimate_throughput(spec, plan, KNOWN, prompt + more, held + more), speed)


def test_more_memory_never_slows_it():
    spec = SPECS["mixtral"]
    need = estimate_memory(spec, "bf16", 4096)
    bands = [estimate_throughput(spec, place(need, gib << 30), Bandwidths()) for gib in (8, 16, 32, 64, 128)]
    assert all(never_better(a, b) for a, b in itertools.pairwise(bands))


def test_a_short_prompt_does_not_read_every_expert_from_disk():
    spec = SPECS["qwen3-30b-a3b"]
    plan = fit(spec, "q4", 2048, 4 << 30)
    short, long = (estimate_throughput(spec, plan, KNOWN, prompt).first_token_low_s for prompt in (1, 512))
    assert plan.disk.experts > 0.5 * plan.memory.expert_count
    assert short < long / 4


def test_the_experts_are_read_again_for_every_block():
    """With a disk so slow that nothing else counts."""
    spec = SPECS["mixtral"]
    plan = fit(spec, "q4", 8192, 8 << 30)
    slow = replace(KNOWN, disk=1e6)
    one, whole, more = (
        estimate_throughput(spec, plan, slow, prompt).first_token_high_s for prompt in (512, 2048, 4096)
    )
    assert (
        plan.memory.block == 2048
        and one == pytest.approx(whole, rel=0.02)
        and more == pytest.approx(2 * whole, rel=0.02)
    )


def test_formats_that_torch_unpacks_are_known_to_be_slow(monkeypatch):
    monkeypatch.setattr(built, "expected", lambda: False)
    spec = SPECS["olmoe"]
    slow, fast = (estimate_throughput(spec, fit(spec, dtype, 1024, 1 << 40), KNOWN) for dtype in ("nf4", "q4"))
    assert slow.high < fast.high / 5 and slow.low < fast.low / 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "olmoe", "deepseek-v2"])
@given(held=st.integers(0, 4096))
def test_the_cache_counts_as_far_as_it_is_held(name, held):
    spec = SPECS[name]
    plan = place(estimate_memory(spec, "bf16", 4096), 1 << 45)
    without = sum(bytes_per_token(spec, plan, 0).values())
    read = sum(bytes_per_token(spec, plan, held).values())
    assert read - without == pytest.approx(plan.memory.kv.bytes * held / 4096)


# Mixtral by hand: 32 layers of 32 heads of 128, 8 key/value heads, 8 experts of which 2, 14,336 wide; 2 bytes a weight.
EXPERT = 2 * 3 * 4096 * 14336
LAYER = 2 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 8 * 4096 + 2 * 4096)
HEAD = 2 * 32000 * 4096
DENSE = 32 * LAYER + 2 * 4096 + HEAD  # of the input table a row is read
KV = 2 * 32 * 2 * 1024  # a token's


def test_a_token_by_hand():
    """All in RAM: the larger of bytes over bandwidth and products, at best a little quicker than measured."""
    spec = SPECS["mixtral"]
    plan = place(estimate_memory(spec, "bf16", 4096), 1 << 40)
    weights = DENSE + 32 * 2 * EXPERT
    for bandwidths, seconds in (
        (replace(KNOWN, ram=10e9), (weights + 1000 * KV) / 10e9),
        (replace(KNOWN, ram=1e15), weights / 40e9),
        (Bandwidths(ram=1e15), weights / 100e9),
        (Bandwidths(), (weights + 1000 * KV) / 30e9),
    ):
        found = estimate_throughput(spec, plan, bandwidths, held=1000)
        assert 1 / found.high == pytest.approx(seconds / 1.15 + 32 * STEP_S)
        assert 1 / found.low == pytest.approx(seconds / 0.4 + 32 * 2e-3)
        assert found.middle == pytest.approx((found.low * found.high) ** 0.5)
    half_full = estimate_throughput(spec, plan, KNOWN, held=2048)
    assert estimate_throughput(spec, plan, KNOWN) == half_full


def test_a_token_by_hand_with_experts_on_disk():
    """At best reading hides behind computing and most experts are at hand, at worst neither."""
    spec = SPECS["mixtral"]
    need = estimate_memory(spec, "bf16", 4096)
    plan = place(need, place(need, 0).least_ram + 64 * need.slot_bytes)
    assert (plan.ram.experts, plan.disk.experts) == (64, 192)
    weights, read = DENSE + 32 * 2 * EXPERT, 32 * 2 * EXPERT * 192 / 256
    computing = max((weights + 1000 * KV) / 30e9, weights / 40e9)
    for disk in (2e9, 1e15):
        found = estimate_throughput(spec, plan, replace(KNOWN, disk=disk), held=1000)
        assert 1 / found.high == pytest.approx(max(computing / 1.15, 0.3 * read / disk / 1.5) + 32 * STEP_S)
        assert 1 / found.low == pytest.approx(computing / 0.4 + read / disk / 0.4 + 32 * 2e-3)


# A device of 500 GB/s behind a link of 20 GB/s; of RAM 60 GB/s, of which the CPU multiplies 40. At best and at worst:
CARD = replace(KNOWN, ram=60e9, device=500e9, link=20e9, operations=50e12)
HERE = [40e9 * 1.15, 40e9 * 0.4]
THERE = [500e9 * 0.95, 500e9 * 0.35]
LINK = [20e9 * 1.05, 20e9 * 0.3]
BESIDE = [0.2e-3 + 40e-6, 5e-3 + 0.5e-3]  # fixed cost of a layer some of whose experts are elsewhere


def test_a_token_by_hand_on_a_device():
    """The device computes its own experts while the CPU computes one and copies another, where that ends sooner."""
    spec = SPECS["mixtral"]
    need = estimate_memory(spec, "bf16", 4096)
    plan = place(need, 1 << 40, least_device(need) + 128 * need.slot_bytes)
    assert (plan.device.experts, plan.ram.experts) == (128, 128)
    found = estimate_throughput(spec, plan, CARD, held=1000)
    for case, rate in enumerate((found.high, found.low)):
        own, here = EXPERT / THERE[case], EXPERT / HERE[case]
        both = here if here > EXPERT / LINK[case] + own else min(2 * here, EXPERT / LINK[case] + own)
        hit = (math.sqrt(0.5), 0.5)[case]
        layer = hit**2 * 2 * own + 2 * hit * (1 - hit) * max(own, here) + (1 - hit) ** 2 * both
        seconds = (DENSE + 1000 * KV) / THERE[case] + 32 * layer
        assert 1 / rate == pytest.approx(seconds + 32 * BESIDE[case])
    assert places(plan) == ("device", "link", "ram") and found.evidence == "typical"


def test_what_is_copied_and_what_is_read_share_the_memory():
    """With a link that outruns RAM, both experts of a token still come out of it."""
    spec = SPECS["mixtral"]
    need = estimate_memory(spec, "bf16", 4096)
    plan = place(need, 1 << 40, least_device(need))
    assert plan.device.experts == 0 and plan.device.dense
    found = estimate_throughput(spec, plan, replace(CARD, ram=10e9, link=1e12), held=0)
    assert 1 / found.high == pytest.approx(DENSE / THERE[0] + 64 * EXPERT / (10e9 * 1.15) + 32 * BESIDE[0])


def test_all_on_a_device_is_read_at_its_bandwidth():
    spec = SPECS["mixtral"]
    need = estimate_memory(spec, "q4", 4096)
    plan = place(need, 1 << 40, 1 << 40)
    assert plan.runs_from == "vram" and places(plan) == ("device",)
    read = bytes_per_token(spec, plan, 1000)["device"]
    for bandwidths, steps in ((CARD, (30e-6, 1e-3)), (replace(CARD, kernels=False), (0.2e-3, 5e-3))):
        found = estimate_throughput(spec, plan, bandwidths, held=1000)
        there = THERE if bandwidths.kernels else (40e9, 1e9)
        assert 1 / found.high == pytest.approx(read / there[0] + 32 * steps[0])
        assert 1 / found.low == pytest.approx(read / there[1] + 32 * steps[1])


def test_measured_rates_of_experts_count_before_bandwidths():
    spec, rates = SPECS["mixtral"], Rates(1e9, Pace(2e9, 0.1), Pace(3e9, 0.2))
    mixture = next(layer.ffn for layer in spec.layers)
    best, worst = (expert_rates(spec, mixture, "q4", CARD, case, rates) for case in (0, 1))
    assert best == Rates(1.15e9, Pace(2.3e9, 0.1), Pace(pytest.approx(3.45e9), 0.2))
    assert worst == Rates(0.4e9, Pace(0.8e9, 0.1), Pace(pytest.approx(1.2e9), 0.2))
    need = estimate_memory(spec, "q4", 4096)
    plan = place(need, 1 << 40, least_device(need))
    slow, fast = (estimate_throughput(spec, plan, CARD, rates=each) for each in (rates, None))
    assert slow.high < fast.high / 10 and slow.first_token_low_s > fast.first_token_low_s


def test_paces_by_hand():
    """A token takes the time of an expert's bytes, each further one that of its two operations a weight."""
    spec = SPECS["mixtral"]
    rates = expert_rates(spec, spec.layers[0].ffn, "bf16", CARD, 0)
    assert rates.copy == LINK[0]
    assert rates.host.seconds(1, EXPERT) == pytest.approx(EXPERT / HERE[0])
    assert rates.host.seconds(11, EXPERT) - rates.host.seconds(1, EXPERT) == pytest.approx(10 * EXPERT / (500e9 * 1.15))
    assert rates.device.seconds(1, EXPERT) == pytest.approx(EXPERT / THERE[0])
    further = rates.device.seconds(11, EXPERT) - rates.device.seconds(1, EXPERT)
    assert further == pytest.approx(10 * EXPERT / (50e12 * 0.6))
    slow = expert_rates(spec, spec.layers[0].ffn, "bf16", replace(CARD, ram=20e9), 1)
    assert slow.host.bytes_per_s == pytest.approx(8e9)


@pytest.mark.parametrize(("source", "evidence"), [("maker", "given"), ("given", "given"), ("measured", "measured")])
def test_one_word_for_all_figures(source, evidence):
    found = replace(KNOWN, sources=Sources("measured", "typical", source, "measured"))
    assert found.evidence(["ram", "device"]) == evidence
    assert found.evidence(["ram", "disk", "link"]) == "typical" and found.evidence(["ram"]) == "measured"


@pytest.mark.slow
@given(
    on_device=st.integers(0, 250),
    more=st.integers(1, 6),
    prompt=st.integers(1, 4000),
    slower=st.floats(0.1, 1),
    name=st.sampled_from(["link", "device", "operations", "ram"]),
)
def test_nothing_that_takes_longer_is_faster_beside_a_device(on_device, more, prompt, slower, name):
    """Nor do more experts on the device ever make it slower."""
    spec = SPECS["mixtral"]
    need = estimate_memory(spec, "q4", 4096)
    few, many = (place(need, 1 << 40, least_device(need) + n * need.slot_bytes) for n in (on_device, on_device + more))
    speed = estimate_throughput(spec, few, CARD, prompt)
    worse = replace(CARD, **{name: getattr(CARD, name) * slower})
    assert bounds(estimate_throughput(spec, few, worse, prompt))[:2] <= tuple(b * (1 + 1e-9) for b in bounds(speed)[:2])
    assert never_better(estimate_throughput(spec, few, worse, prompt), speed)
    assert bounds(speed)[:2] <= tuple(b * (1 + 1e-9) for b in bounds(estimate_throughput(spec, many, CARD, prompt))[:2])


@pytest.mark.parametrize(("dtype", "native", "rates"), [
    *((dtype, True, (None, None)) for dtype in ("bf16", "q4", "q8", "nf4", "int8")),
    ("bf16", False, (None, None)), ("nf4", False, (2e9, 0.3e9)), ("int8", False, (5e9, 0.6e9)),
])  # fmt: skip
@pytest.mark.parametrize("prompt", [1, 100, 512, 1300, 4097])
def test_a_prompt_by_hand(dtype, native, rates, prompt, monkeypatch):
    """Its blocks of 2,048 read what their tokens choose; every weight but the head multiplies every token."""
    monkeypatch.setattr(built, "expected", lambda: native)
    steps = (20e-6 if native else 0.2e-3, 2e-3)
    spec = SPECS["mixtral"]
    plan = place(estimate_memory(spec, dtype, 4096), 1 << 40)
    chunks, blocks, tokens = -(-prompt // 512), -(-prompt // 2048), min(prompt, 2048)
    passes = blocks * (1 - 0.75**tokens)
    weights = passes * plan.memory.experts.bytes + chunks * dense_read_bytes(spec, dtype)
    pairs = 32 * 32 * prompt * prompt / 2
    work = prompt * (DENSE - HEAD + 32 * 2 * EXPERT) + 4 * 128 * pairs
    found = estimate_throughput(spec, plan, KNOWN, prompt)
    for case, seconds in enumerate((found.first_token_low_s, found.first_token_high_s)):
        typical = (600e9, 100e9)[case]
        linear = LinearThroughput(rates[case], typical) if rates[case] else KNOWN.linear
        host = max(weights / 30e9, weights / linear.bytes_per_s) + (0, 80)[case] * pairs / 30e9
        host += work / linear.operations_per_s
        calls = passes * 256 * (10e-6, 0.3e-3)[case]
        assert seconds == pytest.approx(host / (1.15, 0.4)[case] + chunks * 32 * steps[case] + calls)


def test_a_prompt_by_hand_on_a_device():
    """512 tokens choose every expert, 128 tokens each, and all of them lie elsewhere: a long enough prompt copies them
    while the CPU computes a few."""
    spec = SPECS["mixtral"]
    need = estimate_memory(spec, "bf16", 4096)
    plan = place(need, place(need, 0, least_device(need)).least_ram + 64 * need.slot_bytes, least_device(need))
    assert (plan.device.experts, plan.ram.experts, plan.disk.experts) == (0, 64, 192)
    bandwidths = replace(CARD, ram=1e12, linear=LinearThroughput(40e9, 2e9))
    found = estimate_throughput(spec, plan, bandwidths, 512)
    pairs = 32 * 32 * 512 * 512 / 2
    operations = 512 * (DENSE - HEAD) + 4 * 128 * pairs
    for case, seconds in enumerate((found.first_token_low_s, found.first_token_high_s)):
        reached = 50e12 * (0.6, 0.05)[case]
        own = EXPERT / THERE[case] + 127 * EXPERT / reached
        layer = 8 * EXPERT / LINK[case] + own if own < EXPERT / LINK[case] else EXPERT / LINK[case] + 8 * own
        computing = DENSE / THERE[case] + operations / reached + 32 * layer
        read = 192 * EXPERT / 2e9 / (1.5, 0.4)[case]
        expected = computing + read if case else max(computing, read)
        assert seconds == pytest.approx(expected + 32 * BESIDE[case] + 256 * (10e-6, 0.5e-3)[case])


def test_a_long_prompt_gains_more_from_a_device_than_a_short_one():
    """Its experts are copied for many tokens each; beside a slow processor that pays."""
    spec = SPECS["mixtral"]
    need = estimate_memory(spec, "q4", 4096)
    beside, without = place(need, 1 << 40, least_device(need)), place(need, 1 << 40)

    def gain(prompt: int) -> float:
        slow, fast = (estimate_throughput(spec, plan, CARD, prompt).first_token_low_s for plan in (without, beside))
        return slow / fast

    assert gain(2048) > 4 * gain(1) > 0


def test_a_window_bounds_what_a_token_sees():
    spec = SPECS["mixtral"]
    narrow = replace(
        spec, layers=tuple(replace(each, attention=replace(each.attention, window=64)) for each in spec.layers)
    )
    plan = place(estimate_memory(spec, "q4", 4096), 1 << 40)
    wide, less = (estimate_throughput(each, plan, KNOWN, 512).first_token_high_s for each in (spec, narrow))
    pairs = 32 * 32 * 512 * (512 - 64) / 2
    assert wide - less == pytest.approx((80 * pairs / 30e9 + 4 * 128 * pairs / 500e9) / 0.4)


@pytest.mark.parametrize(
    ("dtype", "share", "prefill", "decode"),
    [
        ("bf16", 1.0, 12545, 92.1), ("bf16", 0.5, 2069, 64.5), ("bf16", 0.06, 4783, 58.7),
        ("q4", 1.0, 807, 7.4), ("q4", 0.5, 1052, 9.2), ("q4", 0.06, 1571, 13.1),
    ],
)  # fmt: skip
def test_the_bands_hold_what_an_h100_measured(dtype, share, prefill, decode):
    """By torch alone, four layers of OLMoE: docs/performance.md. Its copies, its link and the RAM beside it."""
    spec = read_spec(SHAPES["olmoe-4-layers"])
    card = Bandwidths(140e9, device=2962e9, link=50e9, operations=GPUS["h100"].operations, kernels=False)
    need = estimate_memory(spec, dtype, 600)
    plan = place(need, 1 << 40, least_device(need) + int(share * need.expert_count) * need.slot_bytes)
    found = estimate_throughput(spec, plan, card, prompt=512, held=540)
    assert found.low < decode < found.high
    assert 512 / found.first_token_high_s < prefill < 512 / found.first_token_low_s
