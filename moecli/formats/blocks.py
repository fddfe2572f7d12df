"""Matrices taken a few rows at a time, so that what is in between stays small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moecli.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 64  # every format can be read from a row that is a multiple of this
_WEIGHTS = 2**20  # about as many at once


def block_rows(columns: int) -> int:
    """How many rows make up a block: a multiple of 64."""
    return max(1, _WEIGHTS // (ROWS * max(1, columns))) * ROWS


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """The rows of a matrix, in order, block by block."""
    step = block_rows(columns)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def check_finite(largest: Tensor) -> None:
    """CheckpointError if one of these maxima is infinite or not a number."""
    if not bool(largest.isfinite().all()):
        raise CheckpointError("a weight is infinite or not a number", "is the checkpoint damaged? fetch it again")
