"""Whole numbers of a few bits after one another, the first in the lowest bits of the first byte or word."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def unpacked(words: Tensor, bits: int) -> Tensor:
    """Words of any width [rows, n] -> uint8 [rows, all numbers of 2 to 8 bits]. They lie along the rows.

    With bits that do not divide 8, a row is whole runs of eight numbers.
    """
    import torch

    octets = words.reshape(-1).view(torch.uint8).view(len(words), -1)
    if bits == 8:
        return octets
    if 8 % bits:  # eight numbers in as many bytes as one has bits
        octets, each = octets.view(len(words), -1, bits).long(), 8
        octets = (octets << torch.arange(0, 8 * bits, 8)).sum(-1)
    else:
        each = 8 // bits
    numbers: Tensor = octets.unsqueeze(-1) >> torch.arange(0, each * bits, bits, dtype=octets.dtype) & 2**bits - 1
    return numbers.to(torch.uint8).view(len(words), -1)
