"""Published blocks laid out natively are the bytes that torch packs of their numbers, whichever numbers those are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moecli import formats
from moecli.errors import CheckpointError
from moecli.formats import GROUPED, bytes_for
from moecli.formats.grouped import IQ4_NL, MXFP4, Q4_0
from moecli.formats.published import Blocks
from moecli.kernels import library, native

pytestmark = pytest.mark.skipif(not library.isas(), reason="the native kernels are not built")
CODES = {"mxfp4": MXFP4.codes, "q4_0": Q4_0.codes, "iq4_nl": IQ4_NL.codes}


@pytest.fixture(params=library.isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    library.use_isa(request.param)
    yield request.param
    library.use_isa(library.isas()[0])


def sample(dtype: str, rows: int, groups: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices [rows, groups, 32] and scales as they are stored, [rows, groups, bytes]: each group of some few codes.

    Powers of two that others can stand for, and scales of either sign, subnormal and 0.
    """
    random = torch.Generator().manual_seed(seed)
    indices = torch.randint(16, (rows, groups, 32), generator=random, dtype=torch.uint8)
    few = torch.randint(16, (rows, groups, 4), generator=random, dtype=torch.uint8)
    kind = torch.randint(5, (rows, groups, 1), generator=random)
    of_few = few.gather(2, (indices % 4).long())
    indices = torch.where(kind == 0, of_few, indices)
    indices = torch.where(kind == 1, of_few[..., :1].expand_as(indices), indices)
    indices = torch.where(kind == 2, indices | 1, indices)  # without the code of index 0
    if dtype == "mxfp4":
        indices = torch.where(kind == 3, indices & 9, indices)  # 0, 1 and their negatives
        exponents = torch.randint(120, 140, (rows, groups, 1), generator=random, dtype=torch.uint8)
        return indices, torch.where(kind % 2 == 1, exponents - 118, exponents)
    scales = torch.randn(rows, groups, generator=random) * 10.0 ** torch.randint(-8, 2, (1, groups), generator=random)
    scales = torch.where(kind[..., 0] == 3, (scales * 64).round() / 64, scales)
    return indices, scales.half()[..., None].view(torch.uint8)


def numbers(dtype: str, indices: Tensor, scales: Tensor) -> Tensor:
    """fp32 [rows, columns]."""
    codes = torch.tensor(CODES[dtype], dtype=torch.float32)[indices.int()]
    factors = (
        torch.ldexp(torch.ones(scales.shape), scales.int() - 128) if dtype == "mxfp4" else scales.view(torch.float16)
    )
    return (codes * factors.float()).flatten(1)


def published(dtype: str, indices: Tensor, scales: Tensor, paired: bool) -> Blocks:
    low, high = (indices[..., ::2], indices[..., 1::2]) if paired else (indices[..., :16], indices[..., 16:])
    together = torch.cat((scales, low | high << 4), 2)  # as in GGUF, so that nothing is aligned
    size = scales.shape[2]
    return Blocks(dtype, together[..., size:], together[..., :size], paired)


def repacked(blocks: Blocks) -> Tensor | None:
    packed = torch.full((bytes_for(blocks.dtype, blocks.shape),), 0xAA, dtype=torch.uint8)
    return packed if native.repack(blocks, packed) else None


@pytest.mark.parametrize("dtype", GROUPED)
@given(
    rows=st.integers(0, 40), groups=st.integers(1, 40), paired=st.booleans(), seed=st.integers(0, 999)
)  # fmt: skip
def test_the_bytes_are_those_of_the_numbers(dtype: str, rows: int, groups: int, paired: bool, seed: int) -> None:
    indices, scales = sample(dtype, rows, groups, seed)
    matrix = numbers(dtype, indices, scales)
    found = repacked(published(dtype, indices, scales, paired))
    assert found is not None and torch.equal(found, formats.pack(dtype, matrix))
    assert torch.equal(formats.unpack(dtype, found, (rows, 32 * groups), torch.float32), matrix)


@pytest.mark.parametrize("dtype", ["q4_0", "iq4_nl"])
def test_every_two_codes(dtype: str) -> None:
    """With each scale of a few: what decides which code the largest weight gets."""
    pairs = torch.cartesian_prod(torch.arange(16), torch.arange(16)).byte()
    indices = pairs[:, None, :].expand(-1, 24, -1).repeat(1, 1, 16).contiguous()
    scales = torch.arange(1, 25).half().mul(113 * 16 / 2**14).repeat(256, 1)[..., None].view(torch.uint8)
    found = repacked(published(dtype, indices, scales, paired=False))
    assert found is not None and torch.equal(found, formats.pack(dtype, numbers(dtype, indices, scales)))


def test_every_power_of_two() -> None:
    indices = torch.randint(16, (34, 141, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    indices = torch.where(torch.arange(34).view(-1, 1, 1) % 2 == 0, indices & 11, indices)  # up to 3, all
    scales = torch.arange(141, dtype=torch.uint8).repeat(34, 1)[..., None]
    matrix = numbers("mxfp4", indices, scales)
    found = repacked(published("mxfp4", indices, scales, paired=True))
    assert found is not None and torch.equal(found, formats.pack("mxfp4", matrix))
    assert torch.equal(formats.unpack("mxfp4", found, (34, 141 * 32), torch.float32), matrix)


@pytest.mark.parametrize(
    ("dtype", "scale", "index"),
    [("mxfp4", 255, 0), ("mxfp4", 141, 7), ("mxfp4", 144, 1), *((dtype, bad, 0) for dtype in ("q4_0", "iq4_nl")
      for bad in (torch.nan, torch.inf, -torch.inf, 65504.0))],
)  # fmt: skip
def test_scales_that_no_weight_can_have(dtype: str, scale: float, index: int) -> None:
    """`False`: whoever asks looks at the numbers, of which the torch path says what is wrong."""
    indices, scales = sample(dtype, 33, 3, 0)
    bad = torch.tensor([scale], dtype=torch.uint8 if dtype == "mxfp4" else torch.float16).view(torch.uint8)
    indices[32, 2], scales[32, 2] = index, bad
    assert repacked(published(dtype, indices, scales, paired=False)) is None
    if scale != 255:
        with pytest.raises(CheckpointError):
            formats.pack(dtype, numbers(dtype, indices, scales))


def test_only_groups_of_bytes_on_the_cpu() -> None:
    indices, scales = sample("q4_0", 16, 2, 0)
    blocks = published("q4_0", indices, scales, paired=False)
    packed = torch.empty(bytes_for("q4_0", blocks.shape), dtype=torch.uint8)
    for bad in (
        Blocks("mxfp4", blocks.indices, blocks.scales, False),
        Blocks("q4_0", blocks.indices[:, :1], blocks.scales, False),
        Blocks("q4_0", blocks.indices.flip(2)[:, :, ::2], blocks.scales, False),
        Blocks("q4_0", blocks.indices.char(), blocks.scales, False),
        Blocks("q4_0", blocks.indices.to("meta"), blocks.scales, False),
    ):
        with pytest.raises(ValueError, match="bytes of each group"):
            native.repack(bad, packed)
    with pytest.raises(ValueError, match="bytes of a matrix"):
        native.repack(blocks, packed[:-1])
