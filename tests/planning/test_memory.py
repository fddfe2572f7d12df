"""Bytes: the sums hold together, and files and caches weigh what is predicted."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import moecli
from moecli.engine.cache import Cache
from moecli.errors import UsageError
from moecli.formats import FORMATS, bytes_for
from moecli.kernels import built
from moecli.kernels.blocking import CHUNK
from moecli.model import catalog, families, params
from moecli.model.spec import FeedForward, Mixture
from moecli.model.tensors import counted_tensors, dense_tensors
from moecli.planning.memory import default_context, estimate_memory, kv_bytes_per_token, read_bytes_per_token
from moecli.planning.placement import largest_context, place
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
    decoder = params.count(replace(spec, encoder=()))
    assert read_bytes_per_token(spec, "bf16") == 2 * decoder.active_without_input_embedding


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


MIB = 2**20


@pytest.fixture(params=[True, False], ids=["native", "torch"])
def native(request, monkeypatch) -> bool:
    """Whether attention is native here."""
    monkeypatch.setattr(built, "expected", lambda: request.param)
    return request.param


def library(native: bool, context: int) -> int:
    """What was measured to stay: after a first chunk of 512 tokens, and after each further one, at most 64 of them."""
    first, further = (3 * MIB, MIB // 2) if native else (18 * MIB, 3 * MIB)
    return int(min(1, context / 512) * first + min(64, context / 512) * further)


@pytest.mark.parametrize("context", [100, 512, 2048, 200_000])
@pytest.mark.parametrize(("dtype", "size", "unpacked"), [
    ("bf16", 2, 0), ("fp32", 4, 0), ("q4", 2, 0), ("nf4", 2, 32 * 256 * 4096), ("int8", 2, 64 * 256 * 4096)
])  # fmt: skip
def test_buffers_by_hand(dtype, size, unpacked, context, native):
    """Mixtral: 32 heads of 128, 8 key/value heads, 8 experts of which 2, 14,336 wide; 32,000 words."""
    need = estimate_memory(spec_of("mixtral"), dtype, context)
    tokens, keys, block = min(512, context), -(-context // 64) * 64, min(2048, context)
    rows = 3 * tokens * (4096 + 2048) * size
    at_once = {
        True: 4 * 16 * (128 + 96) * 2 * 128 + rows,
        False: max(min(4_000_000, 32 * tokens * keys), 32 * keys) * (size + 8) + 28 * 1024 * keys + rows,
    }
    at_once[False] += unpacked
    always = 2 * context * 128 * size + (4 - size) * 32 * 8 * 4096 + (block + 3 * tokens) * 4096 * size
    of_an_expert = tokens if dtype in ("nf4", "int8") else block  # others are too large to pass in one piece
    experts = block * 4096 * (size + 4) + of_an_expert * (4096 * (size + 8) + 14336 * 5)
    expected = {each: always + experts + at_once[each] + library(each, context) for each in at_once}
    assert need.activations.bytes == expected[native]
    assert need.device_activations == expected[False] + block * 2 * 4096 * 4
    assert (need.chunk, need.block) == (tokens, block) and need.kv.bytes == 32 * context * 2048 * size


@pytest.mark.parametrize("context", [100, 512, 4096])
def test_buffers_of_latent_attention_by_hand(context, native):
    """DeepSeek-V2-Lite: 16 heads of 128 + 64, values of 128, latents of 512 + 64; 64 experts of which 6, 1,408 wide."""
    need = estimate_memory(spec_of("deepseek-v2-lite"), "bf16", context)
    tokens, keys, block = min(512, context), -(-context // 64) * 64, min(2048, context)
    absorbed = (128 + 96) * (576 + 512)
    expanded = tokens * (192 + 128) + 512 * (128 + 128) + 96 * (192 + 128 + 576)
    scores = max(min(4_000_000, 16 * tokens * keys), 16 * keys) * 10
    at_once = {
        True: 4 * 16 * max(absorbed, expanded) + (4 * 16 * 192 + 2 * 576) * tokens * 2,
        False: scores + min(4_000_000, keys * 16 * (192 + 128)) * (2 + 14) + 3 * tokens * 16 * 192 * 2,
    }
    always = 2 * context * 64 * 2 + 2 * 26 * 64 * 2048 + (block + 3 * tokens) * 2048 * 2
    experts = block * 2048 * (2 + 4) + block * (2048 * 10 + 1408 * 5)  # 17.3 MB: in pieces
    expected = {each: always + experts + at_once[each] + library(each, context) for each in at_once}
    assert need.activations.bytes == expected[native]
    assert need.device_activations == expected[False] + block * 6 * 2048 * 4


@pytest.mark.parametrize(("dtype", "size", "each"), [("bf16", 2, 12), ("fp32", 4, 16)])
def test_buffers_without_experts_by_hand(dtype, size, each):
    """Llama 2 70B: 64 heads of 128, 8 key/value heads, 28,672 wide. Gate and up, and their sums in float32."""
    need = estimate_memory(spec_of("llama-2-70b"), dtype, 512)
    scores = 4_000_000 * (size + 8) + 28 * 1024 * 512 + 3 * 512 * (8192 + 2048) * size
    always = 2 * 512 * 128 * size + 4 * 512 * 8192 * size + library(False, 512)
    assert need.device_activations == always + scores + 512 * 28672 * each


def test_a_process_weighs_what_was_measured(native):
    spec = spec_of("mixtral")
    for dtype in FORMATS:
        assert estimate_memory(spec, dtype, 512).process.bytes == (264 if native else 272) * MIB
    need = estimate_memory(spec, "q4", 512)
    plan = place(need, 1 << 40, 1 << 40)
    assert (plan.device.process, plan.ram.total) == (800 * MIB, need.process.bytes + 1070 * MIB)


def test_a_table_that_is_the_head_too_is_not_left_on_disk():
    assert estimate_memory(spec_of("mixtral"), "bf16", 512).table == 2 * 32000 * 4096
    assert estimate_memory(spec_of("mixtral", tie_word_embeddings=True), "bf16", 512).table == 0


def test_the_context_nobody_asked_for():
    assert default_context(spec_of("mixtral")) == 8192
    assert default_context(spec_of("mixtral", max_position_embeddings=8191)) == 8191


@given(rows=st.integers(1, 500), columns=st.integers(1, 500))
def test_packed_formats_pad_to_whole_tiles(rows, columns):
    assert bytes_for("q4", (rows, columns)) % 16 == bytes_for("q3", (rows, columns)) % 16 == 0
    assert bytes_for("q8", (rows, columns)) % 544 == 0
    assert bytes_for("q4", (rows, columns)) * 8 >= 4.3125 * rows * columns
    assert bytes_for("q3", (rows, columns)) * 8 >= 3.3125 * rows * columns
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
