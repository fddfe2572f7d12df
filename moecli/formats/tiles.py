"""Matrices cut into strips of 16 rows, packed and unpacked strip by strip.

A strip is one run of bytes, from left to right; the strips of a matrix [out, in] follow one another. The matrix is
padded with zeros to whole strips and tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moecli.errors import CheckpointError
from moecli.formats.blocks import check_finite

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ROWS = 16
LARGEST = 65504.0  # of an fp16 scale, and so of a weight
_TILE = 512  # columns of one whose lines begin where a line of the cache does
_BLOCK = 2**18  # weights packed at once: fits the cache, and is worth splitting among torch's threads
_DECODED = 2**20  # weights unpacked at once


@dataclass(frozen=True, slots=True)
class Tiling:
    """One format of tiles: its size and how it is written and read."""

    columns: int  # that `encode` takes at once
    strip_bytes: Callable[[int], int]  # of so many columns
    encode: Callable[[Tensor, int], Tensor]  # fp32 [16 a, whole tiles], columns -> uint8 [a, strip_bytes(columns)]
    decode: Callable[[Tensor, int], Tensor]  # uint8 [a, strip_bytes(columns)], columns -> fp32 [16 a, columns or more]

    def pack(self, weights: Tensor) -> Tensor:
        """The bytes of a matrix. They depend on the weights alone: not on threads, blocks or strides."""
        import torch
        import torch.nn.functional as F

        rows, columns = weights.shape
        strips, missing = -(-rows // ROWS), -columns % self.columns
        packed = torch.empty(strips, self.strip_bytes(columns), dtype=torch.uint8)
        step = max(1, _BLOCK // (ROWS * max(1, columns)))
        for first in range(0, strips if columns else 0, step):
            part = weights.detach()[first * ROWS : (first + step) * ROWS].float()
            part = F.pad(part, (0, missing, 0, -part.shape[0] % ROWS)) if missing or part.shape[0] % ROWS else part
            packed[first : first + step] = self.encode(part, columns)
        return packed.view(-1)

    def unpack(self, packed: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """The matrix [out, in] again."""
        return self.unpack_rows(packed, shape, dtype, 0, shape[0])

    def unpack_rows(self, packed: Tensor, shape: tuple[int, int], dtype: torch.dtype, first: int, last: int) -> Tensor:
        """Rows first to last of the matrix; `first` is a multiple of 16."""
        import torch

        rows, columns = shape
        strips = packed.view(-(-rows // ROWS), self.strip_bytes(columns))[first // ROWS : -(-last // ROWS)]
        weights = torch.empty(last - first, columns, dtype=dtype, device=packed.device)
        if not weights.numel():
            return weights
        step = max(1, _DECODED // (ROWS * columns))
        for start in range(0, strips.shape[0], step):
            part = weights[start * ROWS : (start + step) * ROWS]
            part.copy_(self.decode(strips[start : start + step], columns)[: part.shape[0], :columns])
        return weights


def check_range(weights: Tensor) -> None:
    """CheckpointError where a weight is not finite, or no scale can reach it."""
    import torch

    low, high = torch.aminmax(weights)
    check_finite(torch.stack((low, high)))
    if max(float(high), -float(low)) > LARGEST:
        raise CheckpointError(f"a weight is larger than {LARGEST:.0f}: too large for fp16 scales")


def join(parts: Sequence[Tensor], spans: Sequence[int], columns: int) -> Tensor:
    """The bytes of strips, uint8 [strips, n], of parts [strips, spans, ...] which lie in this order in each tile.

    A tile has 512 columns, the last of them what is left. `spans` are the columns of one span of each part.
    """
    import torch

    strips, runs = len(parts[0]), []
    for first, tiles, width in _runs(columns):
        places = [slice(first // span, -(-(first + tiles * width) // span)) for span in spans]
        cut = [part[:, place].reshape(strips, tiles, -1) for part, place in zip(parts, places, strict=True)]
        runs.append(torch.cat(cut, -1).view(strips, -1))
    return torch.cat(runs, 1)


def split(packed: Tensor, sizes: Sequence[int], spans: Sequence[int], columns: int) -> list[Tensor]:
    """The parts [strips, bytes] again, of so many bytes a span."""
    import torch

    strips, offset = packed.shape[0], 0
    parts: list[list[Tensor]] = [[] for _ in sizes]
    for _, tiles, width in _runs(columns):
        counts = [-(-width // span) * size for span, size in zip(spans, sizes, strict=True)]
        run = packed[:, offset : offset + tiles * sum(counts)].reshape(strips, tiles, -1)
        for part, cut in zip(parts, run.split(counts, -1), strict=True):
            part.append(cut.reshape(strips, -1))
        offset += tiles * sum(counts)
    return [torch.cat(part, 1) for part in parts]


def _runs(columns: int) -> Iterator[tuple[int, int, int]]:
    """The first column, the number and the width of the whole tiles of a strip, then of what is left."""
    whole = columns // _TILE
    if whole:
        yield 0, whole, _TILE
    if columns % _TILE:
        yield whole * _TILE, 1, columns % _TILE
