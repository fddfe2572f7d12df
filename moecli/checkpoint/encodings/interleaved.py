"""Gate and up whose outputs take turns in one tensor (gpt-oss): one of the two, whatever its numbers are encoded by.

Outputs lie along the last axis: [E, in, 2 * out], or [E, 2 * out] of biases.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moecli.checkpoint import raw
from moecli.checkpoint.encodings._scheme import FLOAT_FORMATS
from moecli.checkpoint.stored import Encoding, StoredTensor

if TYPE_CHECKING:
    from torch import Tensor

    from moecli.checkpoint.folder import Checkpoint
    from moecli.formats.published import Blocks


@dataclass(frozen=True, slots=True)
class Interleaved(Encoding):
    """`parts` are those of the tensor that holds both; `half` is 0 for the first of each pair, else 1."""

    inner: Encoding | None
    half: int

    @property
    def name(self) -> str:
        return self.inner.name if self.inner else self.format

    def rows(self, checkpoint: Checkpoint, first: int, count: int) -> Tensor:
        return self._whole_rows(checkpoint, first, count)[:, self.half :: 2]

    def columns(self, checkpoint: Checkpoint, top: int, height: int, first: int, count: int) -> Tensor:
        if self.inner is None:
            both = raw.columns(checkpoint, self.parts[0], top, height, 2 * first, 2 * count)
        else:
            both = replace(self.inner, parts=self.parts).columns(checkpoint, top, height, 2 * first, 2 * count)
        return both[:, self.half :: 2]

    def column_blocks(self, checkpoint: Checkpoint, top: int, first: int, count: int) -> Blocks | None:
        if self.inner is None:
            return None
        both = replace(self.inner, parts=self.parts).column_blocks(checkpoint, top, 2 * first, 2 * count)
        return both.every_other(self.half) if both else None

    def _whole_rows(self, checkpoint: Checkpoint, first: int, count: int) -> Tensor:
        if self.inner is None:
            return raw.rows(checkpoint, self.parts[0], first, count)
        return replace(self.inner, parts=self.parts).rows(checkpoint, first, count)


def half_of(stored: StoredTensor, half: int) -> StoredTensor:
    """Gate (0) or up (1) of a tensor that holds both, with half as many numbers along its last axis."""
    *rest, width = stored.shape
    halved = replace(stored, shape=(*rest, width // 2))
    if stored.encoding is None and stored.dtype not in FLOAT_FORMATS:
        return halved  # no numbers
    format = stored.encoding.format if stored.encoding else FLOAT_FORMATS[stored.dtype]
    return replace(halved, encoding=Interleaved(stored.parts, format, stored.encoding, half))
