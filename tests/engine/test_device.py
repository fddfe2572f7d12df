"""The path of a GPU, traced without one: nothing meets what is on another device; and what may be asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from moecli.engine.decoder import Decoder
from moecli.engine.device import choose_device
from moecli.engine.load import open_model
from moecli.errors import UsageError
from moecli.formats import bnb
from moecli.planning.rates import Pace, Rates
from tests.support.absent_device import absent_device
from tests.support.checkpoints import ENCODER_DECODERS, MIXTURES, make, prompt, write
from tests.support.running import answer, session
from tests.support.stores import packed, split_plan

pytestmark = pytest.mark.slow

QUICK, SLOW = Pace(1e15, 0.0), Pace(1.0, 1.0)
RATES = {"copied": Rates(1e15, SLOW, QUICK), "stay": Rates(1.0, QUICK, SLOW), "both": Rates(1e9, Pace(1e9, 0.0), QUICK)}
CASES = [
    *product((*MIXTURES, *ENCODER_DECODERS), ["bf16"], ["both"]),
    ("mixtral", "q4", "copied"),
    ("mixtral", "q8", "stay"),
    ("mixtral", "nf4", "copied"),
    ("mixtral", "fp32", "copied"),
    ("mixtral", "fp32", "stay"),
]


def brought(experts: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """What the host reads from the device: distinct experts for each token; of all else, zeros."""

    def read(there: torch.Tensor) -> torch.Tensor:
        if there.dtype is torch.int64:
            return torch.rand(len(there), experts).argsort(-1)[:, : there.shape[1]]
        return torch.zeros(there.shape, dtype=there.dtype)

    return read


def trace(decoder: Decoder, device: torch.device) -> None:
    """A prompt in two chunks, some decoding, and a second turn."""
    assert {tensor.device for layer in decoder.new_cache(8, 8).layers for tensor in layer.buffers} == {device}
    running = session(decoder, 64, 24)
    assert answer(running, prompt(30), 3) == [0] * 3  # zeros are greedily 0
    assert answer(running, prompt(30) + [0] * 3 + prompt(4), 1) == [0]


@pytest.mark.parametrize(("family", "dtype", "rates"), CASES)
def test_a_store_runs_on_a_device(family: str, dtype: str, rates: str, tmp_path: Path) -> None:
    """With experts in the device, in RAM and on disk."""
    bnb.load()
    sizes = {"hidden_size": 64, "intermediate_size": 64} if dtype == "nf4" else {}  # such as bitsandbytes serves
    store = packed(write(make(family, **sizes), tmp_path / "model"), tmp_path / "store", dtype)
    model = open_model(store.folder)
    plan = split_plan(model.spec, dtype, 3, 2)
    assert plan.device.experts == 3 and plan.disk.experts > 0
    with absent_device(brought(model.spec.mixtures[0][1].router.experts)) as device:
        decoder = model.decoder(plan, device=device, rates=RATES[rates])
        trace(decoder, device)
    statistics = decoder.experts.statistics
    assert statistics.hits > 0 and statistics.misses > 0


@pytest.mark.parametrize("dtype", ["fp32", "q4"])
def test_a_checkpoint_runs_on_a_device(dtype: str, tmp_path: Path) -> None:
    model = open_model(write(make("deepseek_v3"), tmp_path))
    plan = split_plan(model.spec, dtype, 4)
    with absent_device(brought(8)) as device:
        decoder = model.decoder(plan, device=device, rates=RATES["both"])
        trace(decoder, device)
    assert decoder.experts.statistics.misses == 0


def test_an_absent_device_is_strict() -> None:
    with absent_device() as device:
        here, there = torch.ones(3, 4), torch.ones(3, 4, device=device)
        assert float((here @ here.T)[0, 0]) == 4.0  # what is on the host alone is computed
        assert F.linear(there, here.to(device)).shape == (3, 3)
        for mixed in (lambda: F.linear(there, here), lambda: here + there, lambda: torch.cat((here, there))):
            with pytest.raises(RuntimeError, match=r"same device|different devices"):
                mixed()
        with pytest.raises(RuntimeError, match="_local_scalar_dense"):
            there.tolist()


def test_without_a_gpu() -> None:
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    for asked in ("cuda", "cuda:1"):
        with pytest.raises(UsageError, match=f"--device {asked}: torch") as caught:
            choose_device(asked)
        assert caught.value.hint is not None and "--device cpu" in caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "gpu"], "error: unknown --device 'gpu'"),
        (["--device", "cuda:x"], "error: unknown --device 'cuda:x'"),
        (["--device", "cpu", "--vram", "2GiB"], "error: --vram 2 GiB has no GPU to bound"),
        (["--vram", "lots"], "error: "),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "moecli", "run", "tiny", "x", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith(message) and "hint: " in done.stderr
