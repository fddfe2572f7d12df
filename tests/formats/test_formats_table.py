"""Every format through the table: sizes, round trips, products, and what all of them promise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from moecli.errors import CheckpointError
from moecli.formats import FORMATS, PLAIN, blocks, bytes_for, matmul, pack, tiles, unpack, unpack_rows
from tests.support.absent_device import absent_device
from tests.support.weight_samples import error, gaussian, heavy, relative_error

QUANTISED = tuple(name for name in FORMATS if name not in PLAIN)
SHAPES = [(1, 1), (1, 200), (16, 128), (17, 129), (15, 64), (20, 800), (40, 33), (3, 2880), (130, 96)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
each = pytest.mark.parametrize("name", FORMATS)
quantised = pytest.mark.parametrize("name", QUANTISED)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@given(name=st.sampled_from(sorted(FORMATS)), rows=st.integers(0, 70), columns=st.integers(1, 300))
@settings(max_examples=80)
def test_a_matrix_takes_exactly_the_bytes_foretold(name: str, rows: int, columns: int) -> None:
    packed = pack(name, torch.ones(rows, columns))
    assert packed.dtype is torch.uint8 and packed.shape == (bytes_for(name, (rows, columns)),)
    assert unpack(name, packed, (rows, columns), torch.float32).shape == (rows, columns)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stored", DTYPES)
@each
def test_a_matrix_comes_back(name: str, stored: torch.dtype, shape: tuple[int, int]) -> None:
    weights = gaussian(*shape).to(stored)
    packed = pack(name, weights)
    exact = unpack(name, packed, shape, torch.float32)
    bounds = {
        "q4": 0.1, "q3": 0.18, "nf4": 0.11, "q8": 0.007, "int8": 0.012, "bf16": 0.003, "mxfp4": 0.14, "q4_0": 0.11,
        "iq4_nl": 0.1,
    }  # fmt: skip
    bound = bounds.get(name, 5e-4)
    assert relative_error(exact, weights) < bound
    for dtype in DTYPES:
        assert torch.equal(unpack(name, packed, shape, dtype), exact.to(dtype))


@pytest.mark.parametrize("shape", [(130, 96), (200, 130), (64, 64), (1, 40)])
@each
def test_rows_can_be_had_without_the_others(name: str, shape: tuple[int, int]) -> None:
    packed = pack(name, gaussian(*shape))
    whole = unpack(name, packed, shape, torch.float32)
    for first in range(0, shape[0], blocks.ROWS):
        for last in {min(first + blocks.ROWS, shape[0]), min(first + 3, shape[0]), shape[0]}:
            assert torch.equal(unpack_rows(name, packed, shape, torch.float32, first, last), whole[first:last])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each
def test_a_product_is_the_product_with_the_matrix(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, x = (150, 129), gaussian(5, 129, seed=9).to(dtype)
    packed = pack(name, gaussian(*shape))
    wanted = F.linear(x.float(), unpack(name, packed, shape, dtype).float())
    monkeypatch.setattr(blocks, "_WEIGHTS", 64 * 129)  # in several blocks
    found = matmul(name, x, packed, shape)
    assert found.dtype is dtype and found.shape == (5, 150)
    assert relative_error(found, wanted) < (1e-5 if dtype is torch.float32 else 5e-3)


@pytest.mark.slow
@quantised
def test_the_bytes_depend_on_the_weights_alone(name: str, monkeypatch: pytest.MonkeyPatch, two_threads: None) -> None:
    weights = heavy(96, 700)
    packed = pack(name, weights)
    assert torch.equal(pack(name, weights.T.contiguous().T), packed)
    for tile_block, row_block in ((2048, 64 * 700), (5 * 2048, 1), (10**7, 10**7)):
        monkeypatch.setattr(tiles, "_BLOCK", tile_block)
        monkeypatch.setattr(blocks, "_WEIGHTS", row_block)
        assert torch.equal(pack(name, weights), packed)
        torch.set_num_threads(1)
        assert torch.equal(pack(name, weights), packed)
        torch.set_num_threads(2)


@quantised
def test_16_bit_weights_are_packed_as_the_same_numbers_in_32(name: str) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        weights = gaussian(33, 200).to(dtype)
        assert torch.equal(pack(name, weights), pack(name, weights.float()))


@pytest.mark.slow
def test_the_plainest_instruction_set_writes_the_same_bytes() -> None:
    """And no format needs bitsandbytes to pack or to unpack."""
    code = (
        "import sys, torch; from hashlib import sha256; from moecli.formats import FORMATS, pack, unpack;"
        "w = torch.arange(40 * 300).mul(7919).remainder(65521).sub(32760).view(40, 300) / 32768.0; w = w * w * w;"
        "packed = {name: pack(name, w) for name in FORMATS};"
        "[unpack(name, packed[name], (40, 300), torch.bfloat16) for name in FORMATS];"
        "found = [sha256(packed[name].numpy()).hexdigest() for name in FORMATS]"
    )
    end = "; assert 'bitsandbytes' not in sys.modules; print(*found)"
    done = subprocess.run(
        [sys.executable, "-c", code + end],
        env={"ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
        check=True,
    )
    here: dict[str, list[str]] = {}
    exec(code, here)
    assert done.stdout.split() == here["found"]


@quantised
def test_zeros_stay_zero(name: str) -> None:
    weights = gaussian(20, 192)
    weights[:, 64:128] = 0
    weights[7] = 0
    found = unpack(name, pack(name, weights), (20, 192), torch.float32)
    assert not found[7].any() and not found[:, 64:128].any()
    nothing = pack(name, torch.zeros(5, 70))
    assert not unpack(name, nothing, (5, 70), torch.float32).any()


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@quantised
def test_a_weight_that_is_no_number_is_refused(name: str, bad: float, two_threads: None) -> None:
    for place in ((0, 0), (39, 699), (20, 350)):
        weights = gaussian(40, 700)
        weights[place] = bad
        with pytest.raises(CheckpointError, match="infinite or not a number"):
            pack(name, weights)


@pytest.mark.parametrize("name", ["q4", "q3", "q8"])
def test_what_fp16_scales_cannot_reach_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="too large"):
        pack(name, torch.tensor([[1.0, -65536.0]]))
    for largest in (65504.0, -65504.0):
        weights = torch.full((1, 64), 100.0)
        weights[0, 5] = largest
        found = unpack(name, pack(name, weights), (1, 64), torch.float32)
        assert found.isfinite().all() and float(found[0, 5]) == pytest.approx(largest, rel=0.01)


@pytest.mark.parametrize("size", [1e-4, 1e-6, 1e-8, 1e-20, 1e-38, 1e-42])
@quantised
def test_small_weights_lose_precision_and_nothing_else(name: str, size: float) -> None:
    weights = gaussian(16, 128) * size
    found = unpack(name, pack(name, weights), (16, 128), torch.float32)
    assert found.isfinite().all()
    assert (found - weights).abs().max() < 0.4 * weights.abs().max() + 2**-25
    if size >= 1e-6:
        scales = {"mxfp4": 0.14, "q4_0": 0.25, "iq4_nl": 0.25}  # those of the last two fp16 as published, the coarsest
        assert relative_error(found, weights) < ({"q4": 0.1, "q3": 0.17, "nf4": 0.11} | scales).get(name, 0.012)


@each
def test_a_product_can_be_traced_for_a_device_that_is_not_there(name: str) -> None:
    with absent_device() as device:
        packed = torch.empty(bytes_for(name, (100, 192)), dtype=torch.uint8, device=device)
        product = matmul(name, torch.empty(3, 192, dtype=torch.bfloat16, device=device), packed, (100, 192))
    assert product.shape == (3, 100) and product.device.type == "cuda" and product.dtype is torch.bfloat16


def test_errors_are_those_published() -> None:
    """On Gaussian weights; the table of the README is made from the same calls."""
    weights = gaussian(256, 2048)
    assert error("q4", weights) == pytest.approx(0.0702, abs=3e-4)
    assert error("q3", weights) == pytest.approx(0.1419, abs=6e-4)
    assert error("nf4", weights) == pytest.approx(0.0922, abs=6e-4)
    assert error("q8", weights) == pytest.approx(0.0050, abs=2e-4)
    assert error("int8", weights) == pytest.approx(0.0079, abs=5e-4)


def test_asking_for_sizes_loads_no_torch() -> None:
    code = "import sys; from moecli.formats import bytes_for; bytes_for('q4', (9, 9)); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
