"""Weights as indices into a codebook, times multiples of a scale: what the formats of few bits share.

    weight = codes[index] * multiple * scale / 128        exact in fp32: 6 bits, 4 bits and 11 bits

256 columns of a row share an fp16 scale, 16 of them a multiple of it: 2, 3, 5, 6, 7, 8, 9 or 10 of either sign, for a
codebook is not symmetric, and each 16 weights take the side that suits them.

A strip of 16 rows is a run of tiles of 16 rows x 512 columns, the last of them as narrow as whole groups of 32 columns
allow: 69 lines of 64 bytes in q4. A tile is, all little-endian,

    16 fp16 scales     of rows 0..15 for its first 256 columns, and as many for the others if there are any; none is
                       negative, infinite or NaN
    16 bytes a group   one for each row: the low nibble chooses the multiple for the group's first 16 columns, the high
                       nibble for the others; bits 0 to 2 are its place in the list above, bit 3 its sign
    indices            of each group, as each format has them

Padding, columns beyond the matrix and rows below it, has the index of code 0, and so contributes exactly nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from moecli.formats.tiles import LARGEST, ROWS, check_range, join, split

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MULTIPLES = (2, 3, 5, 6, 7, 8, 9, 10)
SCALED = 256  # columns
_GROUP = 32
_HALF = 16
_HALVES = SCALED // _HALF
_SPANS = SCALED, _GROUP, _GROUP  # columns of a scale, of a byte of multiples, of indices

_TRIED = (0.95, 1.0, 1.05, 1.1)  # times the least scale that cuts no weight off
_ENOUGH = 0.85  # of what reaches all 16 weights: the multiples tried begin above it
_CELLS = 512  # a quarter of a code wide, around 0
_PER_CODE = 4
_FAINT = 1e-30  # weights below it are zeros: far under the least scale, and their inverse would overflow


@dataclass(frozen=True, slots=True)
class Codebook:
    """One such format. Indices are uint8 [strips, groups, 32 columns, 16 rows]."""

    codes: tuple[int, ...]  # ascending, 0 among them, none below -31 or above 31
    index_bytes: int  # of a group
    write: Callable[[Tensor], Tensor]  # indices -> uint8 [strips, groups, index_bytes]
    read: Callable[[Tensor], Tensor]  # and back

    def strip_bytes(self, columns: int) -> int:
        groups = -(-columns // _GROUP)
        return groups * (ROWS + self.index_bytes) + -(-columns // SCALED) * 2 * ROWS

    def encode(self, weights: Tensor, columns: int) -> Tensor:
        """fp32 [16 a, columns and zeros up to a multiple of 256] to uint8 [a, strip_bytes(columns)]."""
        import torch

        check_range(weights)
        strips, groups = weights.shape[0] // ROWS, -(-columns // _GROUP)
        halves = weights.reshape(-1, _HALVES, _HALF)
        scales, choices = _search(self.codes, halves)
        indices = _look_up(_nearest(self.codes), _cells(halves, scales.float() / 128, choices))
        heads = scales.view(strips, ROWS, -1).transpose(1, 2).contiguous().view(torch.uint8)
        pairs = choices.view(strips, ROWS, -1, 2)[:, :, :groups].byte().transpose(1, 2)
        multiples = pairs[..., 0] | pairs[..., 1] << 4
        lines = self.write(indices.view(strips, ROWS, -1, _GROUP)[:, :, :groups].permute(0, 2, 3, 1))
        return join((heads, multiples, lines), _SPANS, columns)

    def decode(self, packed: Tensor, columns: int) -> Tensor:
        """uint8 [a, strip_bytes(columns)] to fp32 [16 a, columns up to a whole group]."""
        import torch

        strips, groups = packed.shape[0], -(-columns // _GROUP)
        heads, multiples, lines = split(packed, (2 * ROWS, ROWS, self.index_bytes), _SPANS, columns)
        scales = heads.view(torch.float16).view(strips, -1, ROWS).transpose(1, 2).float().div_(128)
        pairs = multiples.view(strips, groups, ROWS).transpose(1, 2)
        choices = torch.stack((pairs & 15, pairs >> 4), -1).long()
        factors = _multiples(packed.device)[choices].view(strips, ROWS, -1)
        factors *= scales.repeat_interleave(_HALVES, 2)[..., : factors.shape[2]]
        indices = self.read(lines.view(strips, groups, -1)).permute(0, 3, 1, 2).long()
        weights = torch.tensor(self.codes, dtype=torch.float32).to(packed.device)[indices]
        weights = weights.reshape(strips * ROWS, -1, _HALF).mul_(factors.view(strips * ROWS, -1, 1))
        return weights.view(strips * ROWS, -1)


def _search(codes: tuple[int, ...], halves: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows [n, 16, 16] the fp16 scales [n] and the choices of multiples [n, 16] that leave the least error.

    The best of the scales tried, the first of equals, is fitted to the codes that it gives.
    """
    import torch

    high, low = halves.amax(2).clamp_(min=0), halves.amin(2).neg_().clamp_(min=0)
    up = torch.maximum(high / codes[-1], low / -codes[0])
    down = torch.maximum(high / -codes[0], low / codes[-1])
    base = torch.minimum(up, down).amax(1) / MULTIPLES[-1]
    faint = base < _FAINT
    base[faint] = 1
    least, scale = torch.full_like(base, torch.inf), base
    choices = torch.zeros(up.shape, dtype=torch.int64)
    for factor in _TRIED:
        tried = base * factor
        found, errors = _best_multiples(codes, halves, up, down, tried)
        error = torch.zeros_like(base)
        for half in range(_HALVES):  # one after another: the same sum everywhere
            error += errors[:, half]
        error *= tried * tried
        better = error < least
        least, scale = torch.where(better, error, least), torch.where(better, tried, scale)
        choices = torch.where(better.unsqueeze(1), found, choices)
    scale = _fitted(codes, halves, scale, choices).mul_(128).clamp_(-LARGEST, LARGEST)
    return scale.masked_fill_(faint, 0).half(), choices.masked_fill_(faint.unsqueeze(1), 0)


def _best_multiples(
    codes: tuple[int, ...], halves: Tensor, up: Tensor, down: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The choice for each 16 weights, and the error it leaves in squares of quarters of the scale.

    Tried are the two least multiples of either sign that nearly reach all of them.
    """
    import torch

    magnitudes = torch.tensor(MULTIPLES)
    least, best = torch.full_like(up, torch.inf), torch.zeros(up.shape, dtype=torch.int64)
    for sign, reach in ((0, up), (8, down)):
        wanted = (reach / scale.unsqueeze(1)).mul_(_ENOUGH)
        first = (magnitudes[:-1] <= wanted.unsqueeze(-1)).sum(-1)
        for choice in (first, (first + 1).clamp_(max=7)):
            squares = _look_up(_squares(codes), _cells(halves, scale, choice + sign)).sum(-1)
            error = (squares * magnitudes[choice].square()).float()
            better = error < least
            least, best = torch.where(better, error, least), torch.where(better, choice + sign, best)
    return best, least


def _fitted(codes: tuple[int, ...], halves: Tensor, scale: Tensor, choices: Tensor) -> Tensor:
    """The scale that suits best the codes which `scale` gives."""
    import torch

    indices = _look_up(_nearest(codes), _cells(halves, scale, choices)).long()
    numbers = torch.tensor(codes)[indices] * _multiples(halves.device)[choices].long().unsqueeze(-1)
    products = _sum(numbers.float().mul_(halves).view(-1, SCALED).t().contiguous())
    return products / numbers.square().sum((1, 2)).float()


def _cells(halves: Tensor, scale: Tensor, choices: Tensor) -> Tensor:
    """The cell of each weight, by its distance from 0 in quarters of a code."""
    import torch

    inverse = _PER_CODE / (scale.unsqueeze(1) * _multiples(halves.device)[choices])
    inverse = inverse.masked_fill_((scale == 0).unsqueeze(1), 0)
    return (halves * inverse.unsqueeze(-1)).round_().add_(_CELLS // 2).clamp_(0, _CELLS - 1).to(torch.int32)


def _look_up(table: Tensor, cells: Tensor) -> Tensor:
    return table.index_select(0, cells.view(-1)).view(cells.shape)


def _sum(groups: Tensor) -> Tensor:
    """The sum of each group [256, n], added in one order whatever the machine. Destroys its argument."""
    half = SCALED // 2
    while half:
        groups[:half].add_(groups[half : 2 * half])
        half //= 2
    return groups[0]


def _multiples(device: torch.device) -> Tensor:
    """What each of the 16 choices multiplies by."""
    import torch

    return torch.tensor((*MULTIPLES, *(-each for each in MULTIPLES)), dtype=torch.float32).to(device)


@cache
def _nearest(codes: tuple[int, ...]) -> Tensor:
    """The index of the nearest code for each cell, the lower one of two."""
    return _distances(codes).argmin(1).byte()


@cache
def _squares(codes: tuple[int, ...]) -> Tensor:
    """The squared distance to it, in cells."""
    return _distances(codes).amin(1).square()


def _distances(codes: tuple[int, ...]) -> Tensor:
    import torch

    cells = torch.arange(_CELLS) - _CELLS // 2
    return (cells[:, None] - _PER_CODE * torch.tensor(codes)).abs()
