"""Whole numbers of a few bits in words of 32, the first in the lowest bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def unpacked(words: Tensor, bits: int) -> Tensor:
    """int32 [rows, n] -> uint8 [rows, n * 32 / bits], for 2, 4 and 8 bits. They lie along the rows."""
    import torch

    octets = words.reshape(-1).view(torch.uint8).view(len(words), -1)
    if bits == 8:
        return octets
    places = torch.arange(0, 8, bits, dtype=torch.uint8)
    numbers: Tensor = octets.unsqueeze(-1) >> places & 2**bits - 1
    return numbers.view(len(words), -1)
