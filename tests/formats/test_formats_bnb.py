"""nf4 and int8 against bitsandbytes itself, and its import against the network."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from moecli.formats import bnb, pack, unpack
from tests.support.weight_samples import gaussian, heavy

pytestmark = pytest.mark.slow

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(64, 128), (33, 65), (5, 7), (1, 63), (100, 96), (1, 1), (130, 2880)]


@pytest.fixture(scope="module", autouse=True)
def hub_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for the package that bitsandbytes fetches with, in place while bitsandbytes is first imported."""
    module = tmp_path_factory.mktemp("kernels") / "kernels.py"
    module.write_text("from pathlib import Path\nPath(__file__).with_name('imported').touch()\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(module.parent))
        bnb.load()
    return module


def sample(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    weights = heavy(*shape)
    if shape[0] > 1:
        weights[1] = 0
    return weights.to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nf4_bytes_are_those_of_bitsandbytes(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    quantise = bnb.load().functional.quantize_4bit
    weights = sample(shape, dtype)
    codes, state = quantise(weights, blocksize=64, quant_type="nf4")
    packed = pack("nf4", weights)
    assert torch.equal(packed[: codes.numel()], codes.view(-1))
    assert torch.equal(packed[codes.numel() :], state.absmax.view(torch.uint8))


@pytest.mark.parametrize("shape", [(64, 128), (2, 192), (1, 62), (100, 96)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nf4_weights_are_those_of_bitsandbytes(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Its CPU routine starts a new block with every row, unlike its quantiser: so it is asked for one long row."""
    functional = bnb.load().functional
    codes, state = functional.quantize_4bit(sample(shape, dtype).view(1, -1), blocksize=64, quant_type="nf4")
    wanted = functional.dequantize_4bit(codes, state).view(shape)
    assert torch.equal(unpack("nf4", pack("nf4", sample(shape, dtype)), shape, dtype), wanted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_is_that_of_bitsandbytes(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    functional = bnb.load().functional
    weights = gaussian(*shape).to(dtype)
    codes, largest, _ = functional.int8_vectorwise_quant(weights.clone())
    packed = pack("int8", weights)
    assert torch.equal(packed[: codes.numel()].view(torch.int8).view(shape), codes)
    assert torch.equal(packed[codes.numel() :].clone().view(torch.float32), largest)
    wanted = functional.int8_vectorwise_dequant(codes, largest)
    assert torch.equal(unpack("int8", packed, shape, torch.float32), wanted)


def test_importing_it_never_asks_the_hub(hub_client: Path) -> None:
    """On processors where it would, the stand-in would have left a trace. Afterwards it can be imported as ever."""
    assert bnb.load() is bnb.load() is sys.modules["bitsandbytes"]
    assert not hub_client.with_name("imported").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(hub_client.parent))
        assert importlib.import_module("kernels").__file__ == str(hub_client)
    del sys.modules["kernels"]
    assert hub_client.with_name("imported").exists()
