"""8-bit weights: int8 codes, one fp16 scale per 32 along a row, in tiles of 16 rows x 32.

    weight = code * scale / 128        exact in fp32; codes are -127 to 127, scales not negative

A tile is 544 bytes, all little-endian. Counting rows r = 0..15 and columns k = 0..31 within the tile:

    bytes 0 to 31     16 fp16 scales, of rows 0..15
    then 8 lines      of 64 bytes: byte b = 0..3 of row r in line j = 0..7, at offset 4 r + b of the line, is the code
                      of column 4 j + b

So a 32-bit lane is four consecutive columns of one row; a line is 16 rows in a 512-bit register. Two tiles are 17
lines of 64 bytes. For unsigned x signed products flip each code's top bit (adding 128) and start the accumulator at
minus 128 times the sum of the activations; the 1/128 joins the scale of the activations.

Padding, columns beyond the matrix and rows below it, has code 0 and so contributes exactly nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moecli.formats.tiles import LARGEST, ROWS, Tiling, extremes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

GROUP = 32
TILE = 544
_SCALES = 2 * ROWS


def pack(weights: Tensor) -> Tensor:
    """The bytes of a matrix [out, in]."""
    return _TILING.pack(weights)


def unpack(packed: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The matrix [out, in] again."""
    return unpack_rows(packed, shape, dtype, 0, shape[0])


def unpack_rows(packed: Tensor, shape: tuple[int, int], dtype: torch.dtype, first: int, last: int) -> Tensor:
    """Some rows of it; `first` is a multiple of 16."""
    return _TILING.unpack_rows(packed, shape, dtype, first, last)


def _encode(weights: Tensor) -> Tensor:
    import torch

    strips, tiles = weights.shape[0] // ROWS, weights.shape[1] // GROUP
    groups = weights.reshape(-1, GROUP)
    scales = extremes(groups, 1).abs().mul_(128 / 127).clamp_(max=LARGEST).half()
    inverse = (128 / scales.float()).masked_fill_(scales == 0, 0.0)
    codes = (groups * inverse.unsqueeze(1)).round_().clamp_(-127, 127).to(torch.int8)
    packed = torch.empty(strips, tiles, TILE, dtype=torch.uint8)
    packed[..., :_SCALES].view(torch.float16).copy_(scales.view(strips, ROWS, tiles).transpose(1, 2))
    lanes = codes.view(torch.int32).view(strips, ROWS, tiles, 8).permute(0, 2, 3, 1)
    packed[..., _SCALES:].view(torch.int32).view(strips, tiles, 8, ROWS).copy_(lanes)
    return packed


def _decode(tiles: Tensor) -> Tensor:
    import torch

    strips, count, _ = tiles.shape
    lanes = tiles[..., _SCALES:].contiguous().view(torch.int32).view(strips, count, 8, ROWS)
    codes = lanes.permute(0, 3, 1, 2).contiguous().view(torch.int8).view(strips, ROWS, count, GROUP)
    scales = tiles[..., :_SCALES].contiguous().view(torch.float16).transpose(1, 2)
    return codes.float().mul_(scales.float().div_(128).unsqueeze(-1)).view(strips * ROWS, count * GROUP)


_TILING = Tiling(GROUP, TILE, _encode, _decode)
