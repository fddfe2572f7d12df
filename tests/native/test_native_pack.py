"""The native quantiser writes the bytes of the torch one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moecli import formats
from moecli.errors import CheckpointError
from moecli.formats import SEARCHED
from moecli.kernels import library, native
from tests.support import native_samples as samples

pytestmark = pytest.mark.skipif(not library.isas(), reason="the native kernels are not built")
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=library.isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    library.use_isa(request.param)
    yield request.param
    library.use_isa(library.isas()[0])


def weights(kind: str, rows: int, columns: int, seed: int = 0) -> Tensor:
    normal = samples.gaussian(rows, columns, seed=seed)
    magnitude = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    return {
        "gaussian": normal * 0.02,
        "heavy": normal.exp() ** 3 * normal * 1e-3,
        "every magnitude": normal * 10 ** (46 * magnitude - 44),
        "faint": normal * 1e-30,
        "subnormal": normal * 1e-41,
        "least fp16": normal * 1e-7,
        "large": normal.clamp(-4, 4) * 16000,
        "largest": torch.where(normal > 0, 65504.0, -65504.0),
        "sparse": normal * (magnitude < 0.02),
        "whole": (normal * 3).round(),
        "zero": torch.zeros(rows, columns),
        "minus zero": -torch.zeros(rows, columns),
    }[kind].clamp(-65504, 65504)


KINDS = (
    "gaussian",
    "heavy",
    "every magnitude",
    "faint",
    "subnormal",
    "least fp16",
    "large",
    "largest",
    "sparse",
    "whole",
    "zero",
    "minus zero",
)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", SEARCHED)
@given(kind=st.sampled_from(KINDS), rows=st.integers(0, 40), columns=st.integers(0, 300), seed=st.integers(0, 99))
def test_the_bytes_are_the_same(dtype: str, kind: str, rows: int, columns: int, seed: int) -> None:
    for precision in PRECISIONS:
        matrix = (weights(kind, rows, columns, seed) / (2 if precision == torch.bfloat16 else 1)).to(precision)
        assert torch.equal(native.pack(dtype, matrix), formats.pack(dtype, matrix))


@pytest.mark.parametrize("dtype", SEARCHED)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_views_and_threads_do_not_matter(dtype: str, precision: torch.dtype) -> None:
    matrix = weights("heavy", 300, 700).to(precision)
    wanted = formats.pack(dtype, matrix)
    torch.set_num_threads(3)
    try:
        for view in (
            matrix,
            matrix.t().contiguous().t(),
            torch.cat((matrix, matrix), 1)[:, 700:],
            matrix.flip(0).flip(0),
        ):
            assert torch.equal(native.pack(dtype, view), wanted)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", SEARCHED)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 65536.0, -1e38])
def test_weights_that_no_scale_reaches(dtype: str, bad: float) -> None:
    matrix = weights("gaussian", 40, 200)
    matrix[33, 150] = bad
    with pytest.raises(CheckpointError) as wanted:
        formats.pack(dtype, matrix)
    with pytest.raises(CheckpointError) as found:
        native.pack(dtype, matrix)
    assert str(found.value) == str(wanted.value) and found.value.hint == wanted.value.hint


def test_only_matrices_on_the_cpu() -> None:
    for bad in (torch.zeros(3), torch.zeros(2, 3, device="meta")):
        with pytest.raises(ValueError, match="matrix on the CPU"):
            native.pack("q4", bad)
