"""The forecast: bands in order, and never better on a slower machine or for more work."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecli.model import catalog
from moecli.planning.memory import estimate_memory
from moecli.planning.placement import fit, place
from moecli.planning.speed import Bandwidths, LinearThroughput, Throughput, bytes_per_token, estimate_throughput
from tests.support.specs import spec_of

SPECS = {entry.alias: spec_of(entry.alias) for entry in catalog.known()}
RUNNABLE = [name for name, spec in SPECS.items() if not spec.unsupported]
KNOWN = Bandwidths(30e9, 2e9, evidence="measured", linear=LinearThroughput(40e9, 500e9))


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
    prompt=st.integers(1, 5000),
    held=st.integers(0, 6000),
)
def test_a_band_is_positive_and_in_order(name, dtype, ram, prompt, held):
    spec = SPECS[name]
    plan = place(estimate_memory(spec, dtype, 8192), ram)
    for bandwidths in (Bandwidths(), KNOWN):
        speed = estimate_throughput(spec, plan, bandwidths, prompt, held)
        assert 0 < speed.low < speed.middle < speed.high
        assert 0 < speed.first_token_low_s < speed.first_token_high_s
        assert speed.evidence == bandwidths.evidence


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


def test_the_prompt_is_read_again_for_every_chunk():
    spec = SPECS["mixtral"]
    plan = fit(spec, "q4", 2048, 8 << 30)
    one, four = (estimate_throughput(spec, plan, KNOWN, prompt).first_token_high_s for prompt in (512, 2048))
    assert plan.memory.chunk == 512 and four > 3.5 * one


def test_formats_that_are_unpacked_first_are_known_to_be_slow():
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
