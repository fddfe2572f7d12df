"""Matrices cut into tiles of 16 rows, packed and unpacked block by block.

A matrix [out, in] is a grid of tiles in row-major order: all tiles of the first 16 rows from left to right, then those
of the next 16. So every strip of 16 rows is one run of bytes. The matrix is padded with zeros to whole tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moecli.errors import CheckpointError
from moecli.formats.blocks import check_finite

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ROWS = 16
LARGEST = 65504.0  # of an fp16 scale, and so of a weight
_BLOCK = 2**18  # weights packed at once: fits the cache, and is worth splitting among torch's threads
_DECODED = 2**20  # weights unpacked at once


@dataclass(frozen=True, slots=True)
class Tiling:
    """One tile format: its size and how it is written and read."""

    columns: int
    bytes: int
    encode: Callable[[Tensor], Tensor]  # fp32 [16 a, columns b] -> uint8 [a, b, bytes]
    decode: Callable[[Tensor], Tensor]  # uint8 [a, b, bytes] -> fp32 [16 a, columns b]

    def pack(self, weights: Tensor) -> Tensor:
        """The bytes of a matrix. They depend on the weights alone: not on threads, blocks or strides."""
        import torch

        rows, columns = weights.shape
        packed = torch.empty(self._grid(rows, columns), dtype=torch.uint8)
        for block in _blocks(packed.shape[0], packed.shape[1], max(1, _BLOCK // (ROWS * self.columns))):
            self._fill(packed, weights.detach(), block)
        return packed.view(-1)

    def unpack_rows(self, packed: Tensor, shape: tuple[int, int], dtype: torch.dtype, first: int, last: int) -> Tensor:
        """Rows first to last of the matrix; `first` is a multiple of 16."""
        import torch

        strips = packed.view(self._grid(*shape))[first // ROWS : -(-last // ROWS)]
        weights = torch.empty(last - first, shape[1], dtype=dtype, device=packed.device)
        if not weights.numel():
            return weights
        step = max(1, _DECODED // (ROWS * self.columns * strips.shape[1]))
        for start in range(0, strips.shape[0], step):
            part = weights[start * ROWS : (start + step) * ROWS]
            part.copy_(self.decode(strips[start : start + step])[: part.shape[0], : shape[1]])
        return weights

    def _grid(self, rows: int, columns: int) -> tuple[int, int, int]:
        return -(-rows // ROWS), -(-columns // self.columns), self.bytes

    def _fill(self, packed: Tensor, weights: Tensor, block: tuple[slice, slice]) -> None:
        import torch.nn.functional as F

        strips, tiles = block
        rows = slice(strips.start * ROWS, strips.stop * ROWS)
        columns = slice(tiles.start * self.columns, tiles.stop * self.columns)
        part = weights[rows, columns].float()
        missing = columns.stop - columns.start - part.shape[1], rows.stop - rows.start - part.shape[0]
        packed[strips, tiles] = self.encode(F.pad(part, (0, missing[0], 0, missing[1])) if any(missing) else part)


def extremes(weights: Tensor, dim: int) -> Tensor:
    """Of each group the weight farthest from zero, with its sign. CheckpointError if a scale cannot reach it."""
    import torch

    low, high = torch.aminmax(weights, dim=dim)
    extreme = torch.where(high > -low, high, low)
    check_finite(extreme)
    if bool((extreme.abs() > LARGEST).any()):
        raise CheckpointError(f"a weight is larger than {LARGEST:.0f}: too large for fp16 scales")
    return extreme


def _blocks(strips: int, tiles: int, limit: int) -> Iterator[tuple[slice, slice]]:
    """A grid of strips x tiles in rectangles of at most `limit` tiles."""
    if not strips or not tiles:
        return
    wide = min(range(1, min(tiles, limit) + 1), key=lambda wide: -(-tiles // wide) * -(-strips // (limit // wide)))
    high = limit // wide
    for strip in range(0, strips, high):
        for tile in range(0, tiles, wide):
            yield slice(strip, min(strip + high, strips)), slice(tile, min(tile + wide, tiles))
