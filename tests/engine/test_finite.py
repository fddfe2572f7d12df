"""Weights and sums that are infinite or none: no token, no trace and no store comes of them, and the place is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moecli.engine.decoder import Decoder
from moecli.engine.generate import Timing
from moecli.engine.load import open_model
from moecli.engine.recorder import LayerwiseRecorder, Recorder, Text, new_builders
from moecli.engine.sampling import Sampler, Sampling
from moecli.errors import CheckpointError
from moecli.formats import FORMATS, PLAIN, pack
from moecli.planning.placement import fit
from tests.support.checkpoints import make, prompt, write
from tests.support.running import ALL, load, session
from tests.support.stores import packed

NAN, INF = float("nan"), float("inf")
LAST = 1  # layer of the small Mixtral
GREEDY, SAMPLED = Sampling(), Sampling(temperature=0.7, top_k=3)
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(make("mixtral"), tmp_path_factory.mktemp("mixtral"))


@pytest.fixture
def spoiled(mixtral: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy in which weights that are called so have such a number, or are that many times larger."""

    def spoil(part: str, number: float = NAN, times: float | None = None) -> Path:
        folder = shutil.copytree(mixtral, tmp_path / "spoiled")
        (file,) = folder.glob("*.safetensors")
        weights = load_file(file)
        for name in [name for name in weights if part in name]:
            if times is not None:
                weights[name] *= times
            else:
                weights[name].view(-1)[::3] = number
        save_file(weights, file)
        return folder

    return spoil


def ask(decoder: Decoder, sampling: Sampling = GREEDY, tokens: int = 5) -> list[int]:
    return list(session(decoder).generate(prompt(tokens), Sampler(sampling, 0), 3, Timing()))


@pytest.mark.parametrize(
    ("part", "number", "where"),
    [
        ("embed_tokens", NAN, "in the embeddings"),
        ("layers.0.self_attn.q_proj", NAN, "in the attention of layer 0"),
        ("layers.0.self_attn.o_proj", INF, "in the attention of layer 0"),
        ("layers.1.input_layernorm", INF, "in the attention of layer 1"),
        ("layers.1.block_sparse_moe.gate", NAN, "in the feed-forward of layer 1"),
        ("layers.0.block_sparse_moe.experts", -INF, "in the feed-forward of layer 0"),
        ("lm_head", NAN, "in the logits"),
        ("model.norm", INF, "in the logits"),
    ],
)
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_no_token_is_chosen_and_the_place_is_named(part, number, where, sampling, spoiled):
    with pytest.raises(CheckpointError, match=where):
        ask(load(spoiled(part, number)), sampling)


def test_sums_beyond_fp16_are_named_and_what_helps(spoiled):
    folder = spoiled("experts", times=3000.0)
    with pytest.raises(CheckpointError, match="feed-forward of layer 0") as refused:
        ask(load(folder, "fp16"))
    assert "--dtype bf16" in refused.value.hint
    assert len(ask(load(folder, "bf16"))) == 3


@pytest.mark.parametrize("native", [True, False], ids=["native", "torch"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_a_packed_model_that_was_spoiled_is_refused(native, tokens, mixtral, tmp_path):
    store = packed(mixtral, tmp_path / "store", "q8")
    folder, norm = store.folder, store.checkpoint["layers.1.ffn_norm"]
    with norm.path.open("r+b") as file:
        file.seek(norm.offset)
        file.write(b"\xff" * norm.size)
    model = open_model(folder)
    decoder = model.decoder(fit(model.spec, "q8", 64, ALL), native=native)
    with pytest.raises(CheckpointError, match="feed-forward of layer 1"):
        ask(decoder, tokens=tokens)


def test_nothing_is_recorded_of_a_router_that_gives_no_numbers(spoiled):
    decoder = load(spoiled(f"layers.{LAST}.block_sparse_moe.gate"))
    builder = new_builders("x", decoder.spec)[""]
    recorder = Recorder(decoder.spec, builder)
    recorder.begin(0)
    with pytest.raises(CheckpointError):
        list(session(decoder).generate(prompt(5), Sampler(GREEDY, 0), 3, Timing(), recorder))
    with pytest.raises(CheckpointError, match=f"in the router of layer {LAST}"):
        recorder.flush()


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ("layers.0.block_sparse_moe.gate", "in the router of layer 0"),
        ("layers.0.block_sparse_moe.experts", "in the router of layer 1"),
        (f"layers.{LAST}.block_sparse_moe.experts", "after the last layer"),
    ],
)
def test_reading_layer_by_layer_sees_it_too(part, where, spoiled):
    decoder = load(spoiled(part))
    text = Text(0, "", prompt(9))
    recorder = LayerwiseRecorder(decoder.spec, new_builders("x", decoder.spec)[""], [text])
    with pytest.raises(CheckpointError, match=where):
        decoder.layerwise_prefill([torch.tensor(text.ids)], 8, recorder)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("number", [NAN, INF, -INF])
def test_no_format_packs_what_is_no_number(dtype, number):
    weights = torch.zeros(16, 128)
    weights[3, 70] = number
    with pytest.raises(CheckpointError, match="infinite or not a number"):
        pack(dtype, weights)


@pytest.mark.parametrize("largest", [65536.0, -7e4, 1e38])
def test_what_fp16_cannot_hold_is_not_packed_to_it(largest):
    weights = torch.zeros(16, 128, dtype=torch.bfloat16)
    weights[3, 70] = largest
    with pytest.raises(CheckpointError, match="larger than fp16 can hold"):
        pack("fp16", weights)
    assert pack("bf16", weights).numel() == 2 * weights.numel()


@pytest.mark.parametrize("dtype", PLAIN)
def test_an_empty_matrix_is_packed(dtype):
    assert pack(dtype, torch.zeros(0, 128)).numel() == 0


@pytest.mark.parametrize("dtype", ["q4", "bf16", "fp32"])
def test_packing_names_the_weight(dtype, spoiled, tmp_path):
    folder = spoiled("layers.1.block_sparse_moe.experts.2.w3")
    with pytest.raises(CheckpointError, match=r"layers\.1\.experts\.2\.up cannot be packed"):
        packed(folder, tmp_path / "store", dtype)


def test_converting_while_loading_names_the_weight(spoiled):
    with pytest.raises(CheckpointError, match="up of expert 2 of layer 1"):
        load(spoiled("layers.1.block_sparse_moe.experts.2.w3"), "q8")
