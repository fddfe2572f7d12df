"""One of 16 whole numbers times a scale of its own 32 weights: mxfp4, and Q4_0 and IQ4_NL of ggml, as published.

    weight = codes[index] * scale        exact in fp32

A strip of 16 rows is a run of tiles of 16 rows x 32 columns; in mxfp4 x 512, the last of them as narrow as whole groups
of 32 columns allow. A tile is, all little-endian,

    scales     of each group one for each row: fp16, of either sign; in mxfp4 a byte e that stands for 2^(e - 128)
    indices    of each group, in 4 lines as those of q4

Packing first looks for the numbers that a group already is: weights that come from such a format are kept to the last
bit, whoever read them. Others take the scale, of those that put the largest weight on a code, with the least squared
error. Columns beyond the matrix meet no activation but 0; rows below it are nobody's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from moecli.formats import q4
from moecli.formats.tiles import LARGEST, ROWS, Tiling, check_range, join, split

if TYPE_CHECKING:
    from torch import Tensor

_GROUP = 32
_LARGEST_EXPONENT = 248  # of mxfp4: above it 2^(e - 128) times 128 is no float32


@dataclass(frozen=True, slots=True)
class Grouped:
    """One such format; `codes` by their index, the first of two equal ones counts."""

    codes: tuple[int, ...]
    scale_bytes: int  # 2: fp16; 1: the exponent of a power of two

    def strip_bytes(self, columns: int) -> int:
        return -(-columns // _GROUP) * (ROWS * self.scale_bytes + 256)

    def encode(self, weights: Tensor, columns: int) -> Tensor:
        """fp32 [16 a, whole groups] to uint8 [a, strip_bytes(columns)]."""
        import torch

        check_range(weights)
        groups = weights.reshape(-1, _GROUP)
        stored = self._exponents(groups) if self.scale_bytes == 1 else self._halves(groups)
        indices = _places(self.codes, groups, _numbers(stored))
        strips = len(weights) // ROWS
        scales = stored.view(strips, ROWS, -1).transpose(1, 2).contiguous().view(torch.uint8)
        lines = q4.write(indices.view(strips, ROWS, -1, _GROUP).permute(0, 2, 3, 1))
        if self.scale_bytes == 2:
            return torch.cat((scales, lines), 2).view(strips, -1)
        return join((scales, lines), (_GROUP, _GROUP), columns)

    def decode(self, packed: Tensor, columns: int) -> Tensor:
        """uint8 [a, strip_bytes(columns)] to fp32 [16 a, columns up to a whole group]."""
        import torch

        strips, groups = len(packed), -(-columns // _GROUP)
        if self.scale_bytes == 2:
            stored, lines = packed.view(strips, groups, -1).split((2 * ROWS, 256), 2)
            stored = stored.contiguous().view(torch.float16)
        else:
            stored, lines = split(packed, (ROWS, 256), (_GROUP, _GROUP), columns)
        scales = _numbers(stored).view(strips, groups, ROWS).transpose(1, 2)
        indices = q4.read(lines.reshape(strips, groups, -1)).permute(0, 3, 1, 2).int()
        weights = torch.tensor(self.codes, dtype=torch.float32).to(packed.device)[indices]  # [strips, 16, groups, 32]
        return weights.mul_(scales.unsqueeze(3)).reshape(strips * ROWS, -1)

    def _exponents(self, groups: Tensor) -> Tensor:
        """uint8 [groups]: that which puts the largest weight on one of the two largest codes, or the next."""
        import torch

        first = groups.abs().amax(1).frexp().exponent + (128 - max(self.codes).bit_length())
        first = first.clamp_(0, _LARGEST_EXPONENT - 1)
        tried = [(first + more).byte() for more in (0, 1)]
        errors = [self._error(groups, _numbers(each)) for each in tried]
        return torch.where(errors[1] < errors[0], tried[1], tried[0])

    def _halves(self, groups: Tensor) -> Tensor:
        """fp16 [groups]: the scale that keeps all weights, else the one that changes them least."""
        import torch

        far = groups.gather(1, groups.abs().argmax(1, keepdim=True)).view(-1)
        tried = [code for code in sorted(self.codes, key=abs, reverse=True) if code]
        chosen = (far / tried[0]).half()
        left = torch.arange(len(groups))
        for code in tried:
            scale = (far[left] / code).clamp_(-LARGEST, LARGEST).half()
            mine = (scale.float() * code == far[left]).nonzero().view(-1)
            kept = mine[self._error(groups[left[mine]], scale[mine].float()) == 0]
            chosen[left[kept]] = scale[kept]
            rest = torch.ones(len(left), dtype=torch.bool)
            rest[kept] = False
            left = left[rest]
            if not len(left):
                return chosen
        few = groups[left]
        least = torch.full((len(left),), torch.inf)
        for code in tried:
            scale = (far[left] / code).clamp_(-LARGEST, LARGEST).half()
            error = self._error(few, scale.float())
            chosen[left] = torch.where(error < least, scale, chosen[left])
            least = torch.minimum(least, error)
        return chosen

    def _error(self, groups: Tensor, scales: Tensor) -> Tensor:
        """What a scale changes of each group, in squares: summed in one order, whatever the machine."""
        import torch

        numbers = torch.tensor(self.codes, dtype=torch.float32)[_places(self.codes, groups, scales).int()]
        squares = numbers.mul_(scales.unsqueeze(1)).sub_(groups).square_().t().contiguous()
        half = _GROUP // 2
        while half:
            squares[:half].add_(squares[half : 2 * half])
            half //= 2
        return squares[0]


def _numbers(stored: Tensor) -> Tensor:
    """Scales as float32."""
    import torch

    if stored.dtype is torch.float16:
        return stored.float()
    return ((stored.int() + 6) << 23).view(torch.float32) / 128


def _places(codes: tuple[int, ...], groups: Tensor, scales: Tensor) -> Tensor:
    """The index of the code nearest to each weight, uint8 [groups, 32]; of two the lower one."""
    import torch

    order, middles = _nearest(codes)
    inverse = (1 / (scales * 2.0**64)).masked_fill_(scales == 0, 0.0)  # that of the least scale itself is no number
    return order[torch.bucketize((groups * 2.0**64).mul_(inverse.unsqueeze(1)), middles, out_int32=True)]


@cache
def _nearest(codes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The indices of the codes in ascending order, uint8, and what lies in the middle of each two."""
    import torch

    known = sorted(set(codes))
    middles = torch.tensor(known, dtype=torch.float32)
    return torch.tensor([codes.index(code) for code in known], dtype=torch.uint8), (middles[1:] + middles[:-1]) / 2


MXFP4 = Grouped((0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12), 1)  # e2m1, doubled
Q4_0 = Grouped(tuple(range(-8, 8)), 2)
IQ4_NL = Grouped((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), 2)
CODECS = {
    name: Tiling(_GROUP, each.strip_bytes, each.encode, each.decode)
    for name, each in (("mxfp4", MXFP4), ("q4_0", Q4_0), ("iq4_nl", IQ4_NL))
}
