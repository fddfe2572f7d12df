"""Dense weights in a format of their own: packed and unpacked alike, in the bytes that were planned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moecli.engine.weights import checkpoint_weights
from moecli.errors import UsageError
from moecli.formats.words import formats_of
from moecli.kernels.linear import Packed, format_of
from moecli.model.spec import Part
from moecli.model.tensors import FLOAT32, dense_tensors
from moecli.planning.memory import estimate_memory, tensor_bytes
from moecli.store.expert_record import compute_dtype
from moecli.store.source import open_source
from tests.support.checkpoints import make, prompt, write
from tests.support.running import greedy, load, score
from tests.support.stores import decoder, packed, random_mistral

IDS = prompt(24)
# One with shared experts and a plain block, one with an output head of its own, one that is tied and has a state.
FAMILIES = ("deepseek_v2", "qwen2_moe", "granitemoehybrid")
WORDS = ("q4-dense-q8", "q3-dense-bf16", "nf4-dense-q8")


@pytest.fixture(scope="module", params=FAMILIES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(make(request.param).to(torch.bfloat16), tmp_path_factory.mktemp("source") / "model")


@pytest.mark.parametrize("dtype", (*WORDS, "mxfp4-dense-q8"))
def test_a_store_is_the_checkpoint_in_that_format(source: Path, tmp_path: Path, dtype: str) -> None:
    """The same tokens and logits: with all in RAM, and with experts on disk."""
    store = packed(source, tmp_path / "store", dtype)
    resident = load(source, dtype)
    logits, ids = score(resident, IDS), greedy(resident, IDS[:9], 8)
    for slots in (None, 2):
        found = decoder(store, slots)
        assert torch.equal(score(found, IDS), logits) and greedy(found, IDS[:9], 8) == ids
    assert store.layout.roles["experts"] == resident.experts.dtype == dtype.partition("-")[0]


@pytest.mark.parametrize("dtype", WORDS)
def test_the_bytes_are_those_that_were_planned(source: Path, dtype: str) -> None:
    """Of each dense tensor; what is computed with in float32 is counted as it is stored, and again as a buffer."""
    weights = open_source(source)
    held = checkpoint_weights(weights, dtype, compute_dtype(dtype, weights.dtype))
    planned, formats = 0, set()
    for tensor in dense_tensors(weights.spec):
        layer = held.outside if tensor.layer is None else held.layers[tensor.layer]
        matrix = layer.matrix(tensor.role)
        planned += (size := tensor_bytes(tensor, dtype))
        if tensor.role not in FLOAT32:
            assert (matrix.data if isinstance(matrix, Packed) else matrix).nbytes == size, tensor.role
        if len(tensor.shape) == 2 and tensor.part in (Part.ATTENTION, Part.SHARED_EXPERTS, Part.LM_HEAD):
            formats.add((tensor.part, format_of(matrix)))
    assert planned == estimate_memory(weights.spec, dtype, 256).dense.bytes
    experts, dense = formats_of(dtype).experts, formats_of(dtype).dense
    assert (Part.ATTENTION, dense) in formats and (Part.ATTENTION, experts) not in formats
    if any(mixture.shared for _, mixture in weights.spec.mixtures):  # the kernels multiply it with the routed ones
        assert {each for part, each in formats if part is Part.SHARED_EXPERTS} == {experts}


def test_a_model_without_experts_has_one_format(tmp_path: Path) -> None:
    spec = open_source(random_mistral(tmp_path)).spec
    with pytest.raises(UsageError, match="have no experts: all of it is dense") as error:
        estimate_memory(spec, "q4-dense-q8", 256)
    assert error.value.hint == "--dtype q8"
