"""bitsandbytes NormalFloat: 4-bit indices into a fixed table, one float32 maximum per 64 weights.

The bytes are those of bitsandbytes' own `quantize_4bit` with blocks of 64 along the flattened matrix, rows unpadded:
the codes, two to a byte with the first in the high nibble, then the maxima, float32 little-endian.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moecli.formats import bytes_for
from moecli.formats.blocks import check_finite, row_blocks

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CODES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
BLOCK = 64
_LEAST = 1e-38  # bitsandbytes' own guard against division by zero


def pack(weights: Tensor) -> Tensor:
    """The bytes of a matrix [out, in]."""
    import torch

    rows, columns = weights.shape
    packed = torch.empty(bytes_for("nf4", (rows, columns)), dtype=torch.uint8)
    codes = packed[: _code_bytes(rows * columns)]
    largest = torch.empty(-(-rows * columns // BLOCK))
    for block in row_blocks(rows, columns):
        values = weights[block].detach().float().reshape(-1)
        start = block.start * columns
        part = largest[start // BLOCK : -(-(start + values.numel()) // BLOCK)]
        codes[start // 2 : -(-(start + values.numel()) // 2)] = _quantise(values, part)
    packed[codes.numel() :] = largest.view(torch.uint8)
    return packed


def unpack(packed: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The matrix [out, in] again."""
    return unpack_rows(packed, shape, dtype, 0, shape[0])


def unpack_rows(packed: Tensor, shape: tuple[int, int], dtype: torch.dtype, first: int, last: int) -> Tensor:
    """Some rows of it; `first` is a multiple of 64."""
    import torch

    columns = shape[1]
    largest = packed[_code_bytes(shape[0] * columns) :].clone().view(torch.float32)
    weights = torch.empty(last - first, columns, dtype=dtype, device=packed.device)
    pairs = _pairs(packed.device)
    for block in row_blocks(last - first, columns):
        start, count = (first + block.start) * columns, (block.stop - block.start) * columns
        found = pairs.index_select(0, packed[start // 2 : -(-(start + count) // 2)].to(torch.int32)).view(torch.float32)
        weights[block] = _scale(found[:count], largest[start // BLOCK :]).view(-1, columns)
    return weights


def _quantise(values: Tensor, largest: Tensor) -> Tensor:
    """The codes of whole blocks and a last, shorter one, whose maxima are written to `largest`."""
    import torch
    import torch.nn.functional as F

    full = values.numel() // BLOCK * BLOCK
    blocks = values[:full].view(-1, BLOCK)
    torch.amax(blocks.abs(), 1, out=largest[: blocks.shape[0]])
    scaled = (blocks * (1.0 / largest[: blocks.shape[0]].clamp(min=_LEAST)).unsqueeze(1)).view(-1)
    if full < values.numel():  # the short block is divided, not multiplied by an inverse: so does bitsandbytes
        largest[-1] = values[full:].abs().max().clamp(min=_LEAST)
        scaled = torch.cat([scaled, values[full:] / largest[-1]])
    check_finite(largest)
    middles = torch.tensor(CODES)
    middles = (middles[1:] + middles[:-1]) / 2
    found = torch.bucketize(F.pad(scaled.clamp_(-1, 1), (0, scaled.numel() % 2)), middles, out_int32=True)
    codes = found.to(torch.uint8)
    return codes[::2] << 4 | codes[1::2]


def _scale(values: Tensor, largest: Tensor) -> Tensor:
    full = values.numel() // BLOCK * BLOCK
    values[:full].view(-1, BLOCK).mul_(largest[: full // BLOCK].unsqueeze(1))
    if full < values.numel():
        values[full:].mul_(largest[full // BLOCK])
    return values


def _code_bytes(weights: int) -> int:
    return -(-weights // 2)


def _pairs(device: torch.device) -> Tensor:
    """For each byte the two float32 values of its nibbles, high one first, as one int64."""
    import torch

    codes = torch.tensor(CODES)
    pairs = torch.stack((codes.repeat_interleave(16), codes.repeat(16)), 1)
    return pairs.view(torch.int64).view(-1).to(device)
