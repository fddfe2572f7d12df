"""3-bit weights: indices into a codebook of 8, in the layout of formats/codebook.py. 3.31 bits a weight.

The indices of a group of 16 rows x 32 columns are 3 lines of 64 bytes, of 4 bytes per row, row after row. The first two
hold the lower two bits of an index, the third its highest bit. The index of column 16 h + 4 j + b (h = 0, 1; j = 0..3;
b = 0..3) of row r is at offset 4 r + b:

    its lower bits     in line j / 2, bits 4 (j % 2) + 2 h and the next
    its highest bit    in line 2, bit 2 j + h

Once looked up, codes are used as those of q4 are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moecli.formats.codebook import SCALED, Codebook
from moecli.formats.tiles import ROWS, Tiling

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CODES = (-31, -19, -11, -5, 0, 6, 13, 22)


def _write(indices: Tensor) -> Tensor:
    import torch

    strips, groups = indices.shape[:2]
    places = indices.reshape(strips, groups, 2, 4, 4, ROWS).transpose(2, 3)  # [strips, groups, j, h, b, row]
    low = (places & 3).reshape(strips, groups, 2, 4, 4, ROWS) << _shifts(2, 4, indices.device)
    high = (places >> 2).reshape(strips, groups, 1, 8, 4, ROWS) << _shifts(1, 8, indices.device)
    lines = torch.cat((low.sum(3, dtype=torch.uint8), high.sum(3, dtype=torch.uint8)), 2)
    return lines.transpose(3, 4).reshape(strips, groups, -1)


def _read(lines: Tensor) -> Tensor:
    strips, groups = lines.shape[:2]
    rows = lines.reshape(strips, groups, 3, 1, ROWS, 4).transpose(4, 5)
    low = (rows[:, :, :2] >> _shifts(2, 4, lines.device) & 3).reshape(strips, groups, 4, 2, 4, ROWS)
    high = (rows[:, :, 2:] >> _shifts(1, 8, lines.device) & 1).reshape(strips, groups, 4, 2, 4, ROWS)
    return (low | high << 2).transpose(2, 3).reshape(strips, groups, -1, ROWS)


def _shifts(bits: int, count: int, device: torch.device) -> Tensor:
    """Where the numbers of `bits` bits in a byte begin: [count, 1, 1]."""
    import torch

    return torch.arange(0, bits * count, bits, dtype=torch.uint8).view(-1, 1, 1).to(device)


_CODEBOOK = Codebook(CODES, 192, _write, _read)
_TILING = Tiling(SCALED, _CODEBOOK.strip_bytes, _CODEBOOK.encode, _CODEBOOK.decode)
pack, unpack, unpack_rows = _TILING.pack, _TILING.unpack, _TILING.unpack_rows
