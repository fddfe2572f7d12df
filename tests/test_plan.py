"""Bytes: the sums hold together, placement obeys budgets, and files weigh what is predicted."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import moecli
from moecli import catalog, families, params, plan
from moecli.engine.cache import Cache
from moecli.forecast import Links, bytes_per_token, forecast
from moecli.formats import FORMATS, bytes_for
from moecli.spec import Mixture, ModelSpec

TINY = Path(moecli.__file__).parent / "tiny"
NAMES = ("mixtral", "dbrx", "grok-1", "deepseek-v2", "olmoe", "gpt-oss-20b", "llama-2-70b", "switch-base-8", "jamba")


def spec_of(name: str) -> ModelSpec:
    entry = catalog.find(name)
    assert entry, name
    return families.read_spec(entry.config())


@pytest.mark.parametrize("name", [entry.alias for entry in catalog.known()])
def test_sixteen_bit_weights_are_two_bytes_a_parameter(name):
    spec = spec_of(name)
    need = plan.needs(spec, "bf16", 1024)
    counts = params.count(spec)
    assert need.weights == 2 * counts.total
    assert plan.needs(spec, "fp32", 1024).weights == 4 * counts.total
    assert plan.read_bytes_per_token(spec, "bf16") == 2 * counts.active_without_input_embedding


@pytest.mark.parametrize("name", ("mixtral", "dbrx", "olmoe", "qwen3-30b-a3b", "deepseek-v3"))
def test_formats_keep_their_order_and_their_bits(name):
    spec = spec_of(name)
    sizes = {dtype: plan.needs(spec, dtype, 1024) for dtype in FORMATS}
    assert sizes["fp32"].weights > sizes["bf16"].weights > sizes["q8"].weights > sizes["q4"].weights
    for dtype, need in sizes.items():
        numbers = params.count(spec).expert_parameters * need.expert_count
        assert need.experts.bytes * 8 / numbers == pytest.approx(FORMATS[dtype].bits, rel=0.02)


def test_the_built_in_file_weighs_what_is_predicted():
    spec = families.read_spec(families.load_config(TINY / "config.json"))
    path = TINY / "model.safetensors"
    header = 8 + int.from_bytes(path.open("rb").read(8), "little")
    assert plan.needs(spec, "bf16", 16).weights == path.stat().st_size - header


@pytest.mark.parametrize(("name", "expected"), [("mixtral", 131072), ("deepseek-v2", 69120), ("dbrx", 163840)])
def test_cache_bytes_per_token(name, expected):
    spec = spec_of(name)
    assert plan.kv_bytes_per_token(spec) == expected
    assert plan.needs(spec, "bf16", 1000).kv.bytes == 1000 * expected
    assert plan.needs(spec, "bf16", 1000, batch=3).kv.bytes == 3 * 1000 * expected


@pytest.mark.parametrize("window", (None, 8, 100))
def test_the_cache_holds_what_the_plan_says(window):
    config = json.loads((TINY / "config.json").read_text()) | {"sliding_window": window}
    spec = families.read_spec(config)
    for capacity in (5, 64, 700):
        cache = Cache(spec, capacity, min(plan.CHUNK, capacity), torch.bfloat16)
        held = sum(b.nbytes for layer in cache.layers for b in layer._buffers)
        assert held == plan.needs(spec, "bf16", capacity).kv.bytes


@pytest.mark.parametrize("name", NAMES)
@given(ram=st.integers(0, 2**41), device=st.none() | st.integers(0, 2**40), context=st.integers(1, 10_000))
def test_placement_loses_nothing_and_keeps_to_its_budgets(name, ram, device, context):
    need = plan.needs(spec_of(name), "bf16", context)
    placed = plan.place(need, ram, device)
    assert placed.device.experts + placed.ram.experts + placed.disk.experts == need.expert_count
    assert {placed.device.dense, placed.ram.dense} == {0, need.dense.bytes}
    assert placed.device.kv + placed.ram.kv == need.kv.bytes
    if device is not None:
        assert placed.device.total <= device
    if placed.ram.experts:
        assert placed.ram.total <= ram
    if placed.fits:
        assert placed.disk.experts == 0 and placed.ram.total <= ram
    assert placed.least_ram <= placed.full_ram
    assert plan.place(need, placed.full_ram, device).fits
    assert not plan.place(need, placed.full_ram - 1, device).fits


def test_more_memory_never_slows_a_forecast():
    spec = spec_of("mixtral")
    need = plan.needs(spec, "bf16", 4096)
    bands = [forecast(spec, plan.place(need, gib << 30), Links()) for gib in (8, 16, 32, 64, 128)]
    assert all(a.low <= b.low and a.high <= b.high for a, b in itertools.pairwise(bands))
    assert all(band.low <= band.high and band.first_token_low_s <= band.first_token_high_s for band in bands)


@pytest.mark.parametrize("name", NAMES)
def test_every_byte_read_comes_from_somewhere(name):
    spec = spec_of(name)
    need = plan.needs(spec, "bf16", 2)
    read = bytes_per_token(spec, plan.place(need, 100 << 30, 40 << 30))
    assert sum(read.values()) == pytest.approx(plan.read_bytes_per_token(spec, "bf16") + need.kv.bytes / 2)


def test_the_largest_context_fits_and_the_next_does_not():
    spec = spec_of("mixtral")
    budget = plan.needs(spec, "q4", 12_345).peak
    longest = plan.largest_context(spec, "q4", 1, budget)
    assert 12_345 <= longest < spec.context_length
    assert not plan.place(plan.needs(spec, "q4", longest + 1), budget).fits
    assert plan.largest_context(spec, "bf16", 1, 1 << 30) == 0
    assert plan.largest_context(spec, "bf16", 1, 1 << 50) == spec.context_length


@given(rows=st.integers(1, 500), columns=st.integers(1, 500))
def test_packed_formats_pad_to_whole_tiles(rows, columns):
    assert bytes_for("q4", (rows, columns)) % 1088 == 0
    assert bytes_for("q8", (rows, columns)) % 544 == 0
    assert bytes_for("q4", (rows, columns)) * 8 >= 4.25 * rows * columns
    assert bytes_for("bf16", (rows, columns)) == 2 * rows * columns


def test_every_mixture_is_counted_once():
    spec = spec_of("deepseek-v2-lite")
    mixtures = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, Mixture)]
    assert plan.needs(spec, "bf16", 8).expert_count == len(mixtures) * 64
