"""Matrices of mxfp4, Q4_0 and IQ4_NL as others publish them: indices and scales of 32 columns each, as they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Blocks:
    """Rows [out, in] of such a matrix, in views of what was read: their strides are those of the file.

    In `paired` indices the first column of two neighbours is in a byte's low nibble, the second in its high one;
    else columns b and 16 + b of a group share byte b. A scale of mxfp4 is a byte e that stands for 2^(e - 128) where
    codes are doubled, one of the others fp16.
    """

    dtype: str  # "mxfp4", "q4_0" or "iq4_nl"
    indices: Tensor  # uint8 [rows, groups, 16]
    scales: Tensor  # uint8 [rows, groups, 1 or 2]
    paired: bool

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in]."""
        rows, groups, _ = self.indices.shape
        return rows, 32 * groups

    def every_other(self, first: int) -> Blocks:
        """Rows `first`, `first` + 2 and so on."""
        return Blocks(self.dtype, self.indices[first::2], self.scales[first::2], self.paired)
