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

from moecli.formats.tiles import LARGEST, ROWS, Tiling, check_range

if TYPE_CHECKING:
    import torch
    from torch import Tensor

GROUP = 32
TILE = 544
_SCALES = 2 * ROWS
_TRIED = tuple(1 + step / 400 for step in (0, -1, 1, -2, 2, -3, 3, -4, 4))  # times largest weight / 127
_LEAST = 2.0**-14 / 128  # of the scales that keep what is exact
_FAINT = 1e-30  # a scale below it is 0: far under the least fp16, and its inverse would overflow


def _encode(weights: Tensor, columns: int) -> Tensor:
    import torch

    check_range(weights)
    strips, tiles = weights.shape[0] // ROWS, weights.shape[1] // GROUP
    groups = weights.reshape(-1, GROUP)
    scales = _scales(groups)
    codes = _codes(groups * _inverse(scales.float() / 128)).to(torch.int8)
    packed = torch.empty(strips, tiles, TILE, dtype=torch.uint8)
    packed[..., :_SCALES].view(torch.float16).copy_(scales.view(strips, ROWS, tiles).transpose(1, 2))
    lanes = codes.view(torch.int32).view(strips, ROWS, tiles, 8).permute(0, 2, 3, 1)
    packed[..., _SCALES:].view(torch.int32).view(strips, tiles, 8, ROWS).copy_(lanes)
    return packed.view(strips, -1)


def _scales(groups: Tensor) -> Tensor:
    """The fp16 scale of each group [groups, 32] that leaves the least squared error; the first tried of equals.

    Where none leaves no error, but another scale would: that.
    """
    import torch

    base = groups.abs().amax(1) / 127
    best, chosen = torch.full_like(base, torch.inf), base
    for factor in _TRIED:
        scale = (base * factor).clamp_(max=LARGEST / 128)
        values = groups * _inverse(scale)
        values.sub_(_codes(values)).mul_(256).round_()  # whole numbers: their squares sum to the same in any order
        error = values.square_().sum(1).mul_(scale.square())
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, scale, chosen)
    scales = chosen.mul(128).half()
    _keep(groups, scales)
    return scales


def _keep(groups: Tensor, scales: Tensor) -> None:
    """Where a scale changes a group that is whole multiples of an fp16 number, 127 at most: that number.

    So weights that were quantised before, on whatever grid of integers, stay what they are.
    """
    import torch

    (left,) = (~_kept(groups, scales.float() / 128)).nonzero(as_tuple=True)
    largest = groups[left].abs().amax(1, keepdim=True)
    counts = torch.arange(127, 0, -1, dtype=torch.float32)
    steps = largest / counts  # [left, 127]
    fits = (steps.view(torch.int32) & 0x1FFF == 0) & (steps * counts == largest)
    fits &= (steps >= _LEAST) & (steps <= LARGEST / 128)
    for place in fits.any(0).nonzero().view(-1).tolist():
        mine = fits[:, place].nonzero().view(-1)
        kept = mine[_kept(groups[left[mine]], steps[mine, place])]
        scales[left[kept]] = (steps[kept, place] * 128).half()
        fits[kept] = False


def _kept(groups: Tensor, scales: Tensor) -> Tensor:
    """Which groups are codes times their scale to the last bit."""
    return (_codes(groups * _inverse(scales)) * scales.unsqueeze(1) == groups).all(1)


def _inverse(scale: Tensor) -> Tensor:
    return (1 / scale).masked_fill_(scale < _FAINT, 0.0).unsqueeze(1)


def _codes(values: Tensor) -> Tensor:
    return values.round().clamp_(-127, 127)


def _decode(strips_of_bytes: Tensor, columns: int) -> Tensor:
    import torch

    tiles = strips_of_bytes.view(strips_of_bytes.shape[0], -1, TILE)
    strips, count, _ = tiles.shape
    lanes = tiles[..., _SCALES:].contiguous().view(torch.int32).view(strips, count, 8, ROWS)
    codes = lanes.permute(0, 3, 1, 2).contiguous().view(torch.int8).view(strips, ROWS, count, GROUP)
    scales = tiles[..., :_SCALES].contiguous().view(torch.float16).transpose(1, 2)
    return codes.float().mul_(scales.float().div_(128).unsqueeze(-1)).view(strips * ROWS, count * GROUP)


def gather(packed: Tensor, shape: tuple[int, int], rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Some rows [n] of the matrix [out, in], unpacked: [n, in]. The rest of their strips is not looked at."""
    import torch

    tiles = -(-shape[1] // GROUP)
    strips, row = (rows // ROWS)[:, None], (rows % ROWS)[:, None]
    halves = packed.view(torch.float16).view(-1, tiles, TILE // 2)
    lanes = packed.view(torch.int32).view(-1, tiles, TILE // 4)
    tile = torch.arange(tiles, device=packed.device)
    line = torch.arange(8, device=packed.device) * ROWS + _SCALES // 4
    scales = halves[strips, tile, row]  # [n, tiles]
    codes = lanes[strips[..., None], tile[:, None], row[..., None] + line].view(torch.int8)  # [n, tiles, 32]
    weights = codes.float().mul_(scales.float().div_(128).unsqueeze(-1))
    return weights.flatten(1)[:, : shape[1]].to(dtype)


_TILING = Tiling(GROUP, lambda columns: -(-columns // GROUP) * TILE, _encode, _decode)
pack, unpack, unpack_rows = _TILING.pack, _TILING.unpack, _TILING.unpack_rows
