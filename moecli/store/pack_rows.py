"""Rows of one matrix of a checkpoint as they lie in a format: laid out anew where they are published in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moecli.checkpoint.binding import Slice, format_of
from moecli.checkpoint.folder import Checkpoint
from moecli.checkpoint.reading import is_published_in, read_blocks, read_rows
from moecli.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from moecli.formats.published import Blocks


def keeps(dtype: str, part: Slice) -> bool:
    """Whether a matrix never becomes numbers: its blocks are those of the format, and a kernel lays them out."""
    from moecli.kernels.linear import can_repack

    return is_published_in(dtype, part) and can_repack(dtype)


def read_kept(dtype: str, checkpoint: Checkpoint, part: Slice, first: int, count: int) -> Blocks | None:
    """Rows of it from `first` on, as they are published; None where it `keeps` nothing."""
    return read_blocks(checkpoint, part, first, count) if keeps(dtype, part) else None


def pack_rows(packed: Tensor, dtype: str, checkpoint: Checkpoint, part: Slice, rows: slice, what: str) -> None:
    """Write rows of a matrix [out, in] to `packed`, uint8.

    CheckpointError where they cannot be read; where they cannot be packed, it says of `what`.
    """
    import torch

    from moecli.formats.plain import torch_dtype
    from moecli.kernels.linear import pack
    from moecli.kernels.native import repack

    count = rows.stop - rows.start
    blocks = read_kept(dtype, checkpoint, part, rows.start, count)
    if blocks is not None and repack(blocks, packed):
        return
    numbers = torch.empty(count, part.matrix_shape[1], dtype=torch_dtype(format_of(part.stored)))
    read_rows(numbers, checkpoint, part, rows.start)
    try:
        packed.copy_(pack(dtype, numbers))
    except CheckpointError as error:
        raise CheckpointError(f"{what}: {error.message}", error.hint) from error
