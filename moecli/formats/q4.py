"""4-bit weights: indices into a fixed codebook, one fp16 scale per 64 along a row, in tiles of 16 rows x 128.

    weight = CODEBOOK[index] * scale / 128        exact in fp32: 8 bits times 11 bits, and a power of two

The scale has either sign: the codebook is not symmetric, and each group takes the side that suits it.

A tile is 1088 bytes, 17 lines of 64, all little-endian. Counting rows r = 0..15 and columns k = 0..127 within the tile:

    line 0           32 fp16 scales: of rows 0..15 for columns 0..63, then of rows 0..15 for columns 64..127
    lines 1 to 8     the indices of columns 0..63
    lines 9 to 16    the indices of columns 64..127

Line j = 0..7 of the eight lines of a group holds 4 bytes per row, row after row. Byte b = 0..3 of row r, at
offset 4 r + b of the line, has

    in its low nibble     the index of column 4 j + b          of the group (its first 32 columns)
    in its high nibble    the index of column 32 + 4 j + b     of the group (its last 32)

So a 32-bit lane is one row: `line & 0x0f..` is four consecutive columns of it, `line >> 4 & 0x0f..` four others, 32
further. A line is 16 rows in a 512-bit register, half a line 8 rows in 256 bits, a quarter 4 rows in 128; each meets
the same four (or eight) activations, broadcast. Activations quantised per 32 columns change scale exactly between low
and high nibbles. For unsigned x signed products add 128 (or 127) to the codebook and start the accumulator at minus as
many times the sum of the activations; the 1/128 joins the scale of the activations.

Padding: columns beyond the matrix and rows below it hold index 8, and where a whole group is padding its scale is 0.
A group that is padded in part decodes to scale / 128 there, so a kernel that works on whole tiles gives it activations
that are 0. Groups of zeros have scale 0 and index 8. No scale is infinite or NaN.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from moecli.formats.tiles import LARGEST, Tiling, extremes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CODEBOOK = (-127, -96, -75, -59, -46, -34, -22, -10, 1, 13, 24, 36, 49, 64, 83, 110)
GROUP = 64
COLUMNS = 128
TILE = 1088

# Scales tried, relative to the one that puts a group's extreme weight on -127. Negative ones put it on the other side.
# Ten chosen greedily on Gaussian, heavy-tailed and trained weights: within 0.2 % of the error of fifty.
_TRIED = (0.9, 0.94, 0.96, 0.98, 1.02, 1.06, -1.02, -1.08, -1.13, -1.18)
_CELLS = 1024  # half a code wide, around 0: every midpoint between two codes lies on an edge
_FAINT = 1e-30  # weights below it are zeros: far under the least scale, and their inverse would overflow


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

    strips, tiles = weights.shape[0] // 16, weights.shape[1] // COLUMNS
    groups = weights.reshape(-1, GROUP).t().contiguous()  # [64, groups]
    scales = _scales(groups)
    halves = _look_up(_nibbles(), _cells(groups, _inverse(scales.float() / 128))).view(2, 8, 4, strips, 16, tiles, 2)
    packed = torch.empty(strips, tiles, TILE, dtype=torch.uint8)
    packed[..., :64].view(torch.float16).view(strips, tiles, 2, 16).copy_(
        scales.view(strips, 16, tiles, 2).permute(0, 2, 3, 1)
    )
    codes = halves[0].bitwise_or_(halves[1].bitwise_left_shift_(4))
    packed[..., 64:].view(strips, tiles, 2, 8, 16, 4).copy_(codes.permute(2, 4, 5, 0, 3, 1))
    return packed


def _decode(tiles: Tensor) -> Tensor:
    import torch

    strips, count, _ = tiles.shape
    lines = tiles[..., 64:].to(torch.int32).view(-1)
    pairs = torch.index_select(_pairs(tiles.device), 0, lines)
    weights = torch.empty(strips, 16, count, 2, 2, 8, dtype=torch.int32, device=tiles.device)  # lanes of 4 codes
    for half, codes in enumerate((pairs.to(torch.int8), (pairs >> 8).to(torch.int8))):
        lanes = codes.view(torch.int32).view(strips, count, 2, 8, 16)
        weights[:, :, :, :, half].copy_(lanes.permute(0, 4, 1, 2, 3))
    scales = tiles[..., :64].contiguous().view(torch.float16).view(strips, count, 2, 16).permute(0, 3, 1, 2)
    values = weights.view(torch.int8).view(strips, 16, count, 2, GROUP).float()
    return values.mul_(scales.float().div_(128).unsqueeze(-1)).view(strips * 16, count * COLUMNS)


_TILING = Tiling(COLUMNS, TILE, _encode, _decode)


def _scales(groups: Tensor) -> Tensor:
    """The fp16 scale of each group [64, groups]: the best of those tried, then fitted to the codes it gives."""
    import torch

    extreme = extremes(groups, 0)
    base = extreme.masked_fill(extreme.abs() < _FAINT, 0.0).div_(-127)
    chosen = _best(groups, (base * torch.tensor(_TRIED)[:, None]).clamp_(-LARGEST / 128, LARGEST / 128))
    codes = _look_up(_codes(), _cells(groups, _inverse(chosen)))
    squares = codes.square().sum(0)
    return (_sum(codes.mul_(groups)) / squares).mul_(128).clamp_(-LARGEST, LARGEST).half()


def _best(groups: Tensor, tried: Tensor) -> Tensor:
    """Of the scales tried [n, groups] the one that leaves each group the least squared error; the first of equals."""
    import torch

    errors = torch.empty_like(tried)
    cells = torch.empty(groups.shape, dtype=torch.int32)
    values, found = torch.empty_like(groups), torch.empty(groups.numel())
    for inverse, error in zip(_inverse(tried).unbind(), errors.unbind(), strict=True):
        cells.copy_(torch.mul(groups, inverse, out=values).add_(_CELLS // 2))
        torch.index_select(_errors(), 0, cells.view(-1), out=found)
        torch.sum(found.view(groups.shape), 0, out=error)  # whole numbers below 2**24: the same in any order
    errors.mul_(tried.square())
    order = torch.arange(len(tried))[:, None].where(errors == errors.amin(0), len(tried)).amin(0)
    return tried.gather(0, order.unsqueeze(0)).squeeze(0)


def _inverse(scale: Tensor) -> Tensor:
    """Cells per weight; 0 for scale 0, which makes every weight 0."""
    return (2 / scale).masked_fill_(scale == 0, 0.0)


def _cells(groups: Tensor, inverse: Tensor) -> Tensor:
    """The cell of each weight, by its distance from 0 in half codes."""
    import torch

    return (groups * inverse).add_(_CELLS // 2).clamp_(0, _CELLS - 1).to(torch.int32)


def _look_up(table: Tensor, cells: Tensor) -> Tensor:
    return table.index_select(0, cells.view(-1)).view(cells.shape)


def _sum(groups: Tensor) -> Tensor:
    """The sum of each group, added in one order whatever the machine. Destroys its argument."""
    half = GROUP // 2
    while half:
        groups[:half].add_(groups[half : 2 * half])
        half //= 2
    return groups[0]


@cache
def _nibbles() -> Tensor:
    """The index of the nearest code, for each cell."""
    import torch

    codes = torch.tensor(CODEBOOK, dtype=torch.float32)
    middles = (torch.arange(_CELLS) - _CELLS // 2 + 0.5) / 2
    return (middles[:, None] - codes).abs().argmin(1).to(torch.uint8)


@cache
def _codes() -> Tensor:
    """The nearest code."""
    import torch

    return torch.tensor(CODEBOOK, dtype=torch.float32)[_nibbles().long()]


@cache
def _errors() -> Tensor:
    """16 times the squared distance to it, from the middle of the cell: a whole number."""
    import torch

    return ((torch.arange(_CELLS) - _CELLS // 2 + 0.5) / 2 - _codes()).mul_(4).square_()


def _pairs(device: torch.device) -> Tensor:
    """For each byte the codes of its two nibbles, as the two bytes of an int16."""
    import torch

    codes = torch.tensor(CODEBOOK, dtype=torch.int16)
    low, high = codes.repeat(16), codes.repeat_interleave(16)
    return ((low & 255) | (high << 8)).to(device)
