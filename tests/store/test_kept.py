"""What is published on a grid of 4-bit codes stays on it: no packed weight differs from the one it was made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moecli.formats import bytes_for, unpack
from moecli.library.gguf import unfolded
from moecli.store.convert import _numbers, _strips
from moecli.store.cost import measure
from moecli.store.jobs import Job, jobs
from moecli.store.packed import PackedStore
from moecli.store.source import open_source
from tests.support.checkpoints import prompt
from tests.support.gguf_files import make
from tests.support.running import greedy, load, score
from tests.support.stores import decoder, experts_in, packed


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOECLI_HOME", str(tmp_path / "home"))


def after(store: PackedStore, job: Job) -> torch.Tensor:
    shape = (1, *job.shape) if len(job.shape) == 1 else job.shape
    data = bytearray(bytes_for(job.dtype, shape))
    with (store.folder / job.file).open("rb") as file:
        file.seek(job.offset)
        file.readinto(data)
    packed_bytes = torch.frombuffer(data, dtype=torch.uint8)
    return unpack(job.dtype, packed_bytes, (shape[0], shape[1]), torch.float32).view(job.shape)


@pytest.mark.parametrize(
    ("family", "kind", "dtype"),
    [
        ("mixtral", "Q4_0", "q4_0"), ("mixtral", "IQ4_NL", "iq4_nl"), ("mixtral", "MXFP4", "mxfp4"),
        ("gpt_oss", "MXFP4", "mxfp4"), ("mixtral", "Q8_0", "q8"),
    ],
)  # fmt: skip
def test_every_packed_weight_is_the_published_one(family: str, kind: str, dtype: str, tmp_path: Path) -> None:
    """Of the whole model, but what the rest of an mxfp4 model loses in 16 bits; and its tokens are those from slots."""
    folder = unfolded(make(family, tmp_path, kind).file)
    weights = open_source(folder)
    assert weights.packed_dtype == dtype
    store = packed(folder, tmp_path / "store", dtype)
    for job in jobs(weights, store.layout):
        (before,) = (_numbers(strip, weights.checkpoint).float() for strip in _strips(job))
        if job.dtype == "bf16":  # vectors, the rest of an mxfp4 model, and a table that 16 bits are looked up of
            before = before.bfloat16().float()
        assert torch.equal(after(store, job), before), job.name
    if dtype in ("q4_0", "iq4_nl"):
        assert measure(weights, store).error == 0
    ids = prompt(40)
    whole = decoder(store, None)
    logits, tokens = score(whole, ids), greedy(whole, ids, 12)
    for slots in (0, experts_in(store) // 2):
        assert torch.equal(score(decoder(store, slots), ids), logits)
    on_the_fly = load(folder, dtype)
    assert torch.equal(score(on_the_fly, ids), logits) and greedy(on_the_fly, ids, 12) == tokens
