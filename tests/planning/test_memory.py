"""Bytes: the sums hold together, and files and caches weigh what is predicted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import moecli
from moecli.engine.cache import Cache
from moecli.formats import FORMATS, bytes_for
from moecli.kernels.blocking import CHUNK
from moecli.model import catalog, families, params
from moecli.model.spec import Mixture
from moecli.planning.memory import estimate_memory, kv_bytes_per_token, read_bytes_per_token
from tests.support.specs import spec_of

TINY = Path(moecli.__file__).parent / "tiny"


@pytest.mark.slow
@pytest.mark.parametrize("name", [entry.alias for entry in catalog.known()])
def test_sixteen_bit_weights_are_two_bytes_a_parameter(name):
    spec = spec_of(name)
    need = estimate_memory(spec, "bf16", 1024)
    counts = params.count(spec)
    assert need.weights == 2 * counts.total
    assert estimate_memory(spec, "fp32", 1024).weights == 4 * counts.total
    assert read_bytes_per_token(spec, "bf16") == 2 * counts.active_without_input_embedding


@pytest.mark.parametrize("name", ("mixtral", "dbrx", "olmoe", "qwen3-30b-a3b", "deepseek-v3"))
def test_formats_keep_their_order_and_their_bits(name):
    spec = spec_of(name)
    sizes = {dtype: estimate_memory(spec, dtype, 1024) for dtype in FORMATS}
    assert sizes["fp32"].weights > sizes["bf16"].weights > sizes["q8"].weights > sizes["q4"].weights
    for dtype, need in sizes.items():
        numbers = params.count(spec).expert_parameters * need.expert_count
        assert need.experts.bytes * 8 / numbers == pytest.approx(FORMATS[dtype].bits, rel=0.02)


def test_the_built_in_file_weighs_what_is_predicted():
    spec = families.read_spec(families.load_config(TINY / "config.json"))
    path = TINY / "model.safetensors"
    header = 8 + int.from_bytes(path.open("rb").read(8), "little")
    assert estimate_memory(spec, "bf16", 16).weights == path.stat().st_size - header


@pytest.mark.parametrize(("name", "expected"), [("mixtral", 131072), ("deepseek-v2", 69120), ("dbrx", 163840)])
def test_cache_bytes_per_token(name, expected):
    spec = spec_of(name)
    assert kv_bytes_per_token(spec) == expected
    assert estimate_memory(spec, "bf16", 1000).kv.bytes == 1000 * expected
    assert estimate_memory(spec, "bf16", 1000, batch=3).kv.bytes == 3 * 1000 * expected


@pytest.mark.parametrize("window", (None, 8, 100))
def test_the_cache_holds_what_the_plan_says(window):
    config = json.loads((TINY / "config.json").read_text()) | {"sliding_window": window}
    spec = families.read_spec(config)
    for capacity in (5, 64, 700):
        cache = Cache(spec, capacity, min(CHUNK, capacity), torch.bfloat16)
        held = sum(b.nbytes for layer in cache.layers for b in layer.buffers)
        assert held == estimate_memory(spec, "bf16", capacity).kv.bytes


@given(rows=st.integers(1, 500), columns=st.integers(1, 500))
def test_packed_formats_pad_to_whole_tiles(rows, columns):
    assert bytes_for("q4", (rows, columns)) % 1088 == 0
    assert bytes_for("q8", (rows, columns)) % 544 == 0
    assert bytes_for("q4", (rows, columns)) * 8 >= 4.25 * rows * columns
    assert bytes_for("bf16", (rows, columns)) == 2 * rows * columns


def test_every_mixture_is_counted_once():
    spec = spec_of("deepseek-v2-lite")
    mixtures = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, Mixture)]
    assert estimate_memory(spec, "bf16", 8).expert_count == len(mixtures) * 64
