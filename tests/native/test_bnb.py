"""bitsandbytes on our own bytes, against the same products by torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from moecli import formats
from moecli.formats import bnb as module
from moecli.kernels import bnb, choice, native
from tests.support.checkpoints import make, prompt, write
from tests.support.running import load, score

pytestmark = pytest.mark.slow

SHAPES = [(64, 128), (40, 192), (33, 65), (17, 96), (30, 62)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    module.load()


def sample(
    dtype: str, shape: tuple[int, int], tokens: int, precision: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(tokens)
    x = torch.randn(tokens, shape[1])
    x[:, 3] *= 30  # a column of outliers
    return x.to(precision), formats.pack(dtype, torch.randn(shape) * 0.2)


@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", DTYPES)
def test_nf4_is_as_by_torch(precision: torch.dtype, shape: tuple[int, int], tokens: int) -> None:
    x, packed = sample("nf4", shape, tokens, precision)
    found = bnb.linear("nf4", x, packed, shape)
    assert found.dtype is precision
    wanted = formats.matmul("nf4", x.double(), packed, shape)
    assert (found - wanted).norm() <= {torch.float32: 1e-6, torch.float16: 1e-3}.get(precision, 6e-3) * wanted.norm()


@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", DTYPES)
def test_int8_rounds_what_is_no_outlier(precision: torch.dtype, shape: tuple[int, int], tokens: int) -> None:
    """Every x is rounded to 1/127 of the largest of its row that is no outlier: here 6 at the most."""
    x, packed = sample("int8", shape, tokens, precision)
    before = x.clone()
    found = bnb.linear("int8", x, packed, shape)
    assert torch.equal(x, before) and found.dtype is precision
    wanted = formats.matmul("int8", x.double(), packed, shape)
    weights = formats.unpack("int8", packed, shape, torch.float64)
    worst = 6 / 127 / 2 * weights.abs().sum(1) + 8e-3 * (x.double().abs() @ weights.abs().T)
    assert ((found - wanted).abs() <= worst).all()
    assert (found - wanted).norm() <= 0.012 * wanted.norm()


def test_without_outliers_a_product_is_as_good() -> None:
    x = torch.ones(3, 64)
    packed = formats.pack("int8", torch.eye(64))
    assert torch.allclose(bnb.linear("int8", x, packed, (64, 64)), F.linear(x, torch.eye(64)), atol=1e-3)


def test_it_serves_a_gpu_and_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    choice.chosen.cache_clear()
    assert [choice.chosen(dtype, "cuda") for dtype in ("nf4", "int8", "q4", "q8")] == ["bnb", "bnb", "torch", "torch"]
    assert choice.chosen("nf4", "cpu") == ("native" if native.available("nf4") else "torch")
    choice.chosen.cache_clear()
    monkeypatch.setenv("MOECLI_KERNEL", "bnb")
    assert [choice.chosen(dtype, "cpu") for dtype in ("nf4", "int8", "q4")] == ["bnb", "bnb", "torch"]
    choice.chosen.cache_clear()


@pytest.mark.parametrize("dtype", ["nf4", "int8"])
def test_a_model_runs_with_it(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(make("mixtral", hidden_size=64, intermediate_size=64), tmp_path)
    choice.chosen.cache_clear()
    monkeypatch.setenv("MOECLI_KERNEL", "torch")  # as under bnb attention is torch's then
    wanted = score(load(folder, dtype), prompt(30))
    choice.chosen.cache_clear()
    monkeypatch.setenv("MOECLI_KERNEL", "bnb")
    error = (score(load(folder, dtype), prompt(30)) - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    choice.chosen.cache_clear()
    assert error.median() < (1e-5 if dtype == "nf4" else 0.1)
