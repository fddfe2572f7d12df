"""4-bit weights: indices into a codebook of 16, in the layout of formats/codebook.py. 4.31 bits a weight.

The indices of a group of 16 rows x 32 columns are 4 lines of 64 bytes. Line j = 0..3 holds 4 bytes per row, row after
row. Byte b = 0..3 of row r, at offset 4 r + b of the line, has

    in its low nibble     the index of column 4 j + b          of the group (its first 16 columns)
    in its high nibble    the index of column 16 + 4 j + b     of the group (its last 16)

So a 32-bit lane is one row: `line & 0x0f..` is four consecutive columns of it, `line >> 4 & 0x0f..` four others, 16
further. A line is 16 rows in a 512-bit register, half a line 8 rows in 256 bits, a quarter 4 rows in 128; each meets
the same four (or eight) activations, broadcast. For unsigned x signed products add 32 to the codebook and start the
accumulator at minus as many times the sum of the activations. Then a code is 60 at most, and four products with int8
fit 16 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moecli.formats.codebook import SCALED, Codebook
from moecli.formats.tiles import ROWS, Tiling

if TYPE_CHECKING:
    from torch import Tensor

CODES = (-31, -25, -20, -15, -11, -8, -5, -2, 0, 3, 6, 9, 12, 16, 21, 28)


def write(indices: Tensor) -> Tensor:
    """Indices uint8 [strips, groups, 32 columns, 16 rows] as lines, [strips, groups, 256]."""
    strips, groups = indices.shape[:2]
    nibbles = indices.reshape(strips, groups, 2, 4, 4, ROWS)
    return (nibbles[:, :, 0] | nibbles[:, :, 1] << 4).transpose(3, 4).reshape(strips, groups, -1)


def read(lines: Tensor) -> Tensor:
    """And back."""
    import torch

    strips, groups = lines.shape[:2]
    pairs = lines.reshape(strips, groups, 4, ROWS, 4).transpose(3, 4)
    return torch.stack((pairs & 15, pairs >> 4), 2).view(strips, groups, -1, ROWS)


_CODEBOOK = Codebook(CODES, 256, write, read)
_TILING = Tiling(SCALED, _CODEBOOK.strip_bytes, _CODEBOOK.encode, _CODEBOOK.decode)
pack, unpack, unpack_rows = _TILING.pack, _TILING.unpack, _TILING.unpack_rows
