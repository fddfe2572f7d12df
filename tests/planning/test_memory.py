"""Bytes: the sums hold together, and files and caches weigh what is predicted."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import moecli
from moecli.engine.cache import Cache
from moecli.errors import UsageError
from moecli.formats import FORMATS, bytes_for
from moecli.kernels.blocking import CHUNK
from moecli.model import catalog, families, params
from moecli.model.spec import FeedForward, Mixture
from moecli.model.tensors import counted_tensors, dense_tensors
from moecli.planning.memory import estimate_memory, kv_bytes_per_token, read_bytes_per_token
from moecli.planning.placement import largest_context
from moecli.store.expert_record import expert_record
from moecli.units import parse_size
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


_MIXTRAL = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 128, "intermediate_size": 192,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 6, "num_experts_per_tok": 2,
    "num_hidden_layers": 5, "vocab_size": 500, "max_position_embeddings": 512, "dtype": "bfloat16",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "absurd",
    [
        {"num_hidden_layers": 1000}, {"num_hidden_layers": 1000, "max_position_embeddings": 2**31 - 1},
        {"num_local_experts": 4096}, {"hidden_size": 2**30, "num_attention_heads": 2**20},
        {"intermediate_size": 2**30}, {"sliding_window": 2**30, "max_position_embeddings": 2**31 - 1},
    ],
)  # fmt: skip
def test_sizes_without_measure_take_no_time(absurd):
    """They took up to a minute of processor."""
    began = time.process_time()
    spec = families.read_spec(_MIXTRAL | absurd)
    assert estimate_memory(spec, "q4", 512).peak > 0
    assert largest_context(spec, "q4", 1, 2**33) <= spec.context_length
    assert time.process_time() - began < 5


@pytest.mark.parametrize("layers", [1, 5, 40])
def test_counting_kinds_of_layers_counts_every_tensor(layers):
    config = catalog.find("qwen3-30b-a3b").config() | {"num_hidden_layers": layers, "decoder_sparse_step": 2}
    spec = families.read_spec(config)
    every = sum(tensor.count for tensor in dense_tensors(spec))
    assert sum(times * tensor.count for tensor, times in counted_tensors(spec)) == every


@pytest.mark.parametrize("rows", [64, 24576, 2**20 + 64, 2**25])
@pytest.mark.parametrize("width", [96, 4096, 5000])
def test_a_staging_buffer_holds_any_piece(rows, width):
    record = expert_record(width, FeedForward(rows), "q4")
    assert record.largest_piece == max(piece.buffer_size for piece in record.pieces())


@pytest.mark.parametrize("size", ["9" * 5000, "1e400", "inf", "nan", "9" * 400 + "GiB", "-1GiB", "1" * 5000 + "x", ""])
def test_a_size_of_any_length_is_refused_in_a_line(size):
    with pytest.raises(UsageError) as refused:
        parse_size(size)
    assert refused.value.hint and len(refused.value.message) < 100
