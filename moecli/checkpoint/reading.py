"""Stored tensors as torch tensors: in place in their mapped file, or copied, decoded and converted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from moecli.checkpoint import raw
from moecli.checkpoint.binding import Slice
from moecli.checkpoint.folder import Checkpoint
from moecli.checkpoint.stored import StoredTensor
from moecli.formats import GROUPED
from moecli.formats.blocks import row_blocks
from moecli.formats.published import Blocks

if TYPE_CHECKING:
    import torch


def read_into(target: torch.Tensor, checkpoint: Checkpoint, stored: StoredTensor, offset: int = 0) -> None:
    """Fill `target`, contiguous, from the file, starting `offset` bytes in; converted if the precision differs."""
    import torch

    if target.numel() == 0:
        return
    dtype = raw.torch_dtype(stored)
    staging = target if target.dtype is dtype else torch.empty(target.shape, dtype=dtype)
    checkpoint.read_into(raw.as_bytes(staging), stored, offset)
    if staging is not target:
        target.copy_(staging)


def read_rows(target: torch.Tensor, checkpoint: Checkpoint, part: Slice, first: int = 0) -> None:
    """Fill `target`, contiguous, with rows of a matrix [out, in], or numbers of a vector, from row `first` on.

    Converted if the precision differs.
    """
    stored, encoding = part.stored, part.stored.encoding
    if part.transposed:
        height = math.prod(part.shape[:-1])
        begin = first + (part.columns[0] if part.columns else 0)
        if encoding is None:
            found = raw.columns(checkpoint, stored, part.first_row, height, begin, len(target), part.shape[-1])
        else:
            found = encoding.columns(checkpoint, part.first_row, height, begin, len(target))
        target.copy_(found.T)
    elif encoding is not None:
        if target.dim() == 1:
            target.copy_(encoding.rows(checkpoint, 0, 1).view(-1)[first : first + len(target)])
            return
        for strip in row_blocks(len(target), target.shape[1]):  # what is in between is several times as large
            height = strip.stop - strip.start
            found = encoding.rows(checkpoint, part.first_row + first + strip.start, height)
            target[strip] = found.view(target[strip].shape)
    else:
        numbers = math.prod(part.shape)
        skipped = first * math.prod(target.shape[1:]) * part.size // numbers if numbers else 0
        read_into(target, checkpoint, stored, part.offset + skipped)


def is_published_in(dtype: str, part: Slice) -> bool:
    """Whether the blocks of a matrix are those of a format of others that is kept."""
    encoding = part.stored.encoding
    return encoding is not None and dtype in GROUPED and encoding.name.lower() == dtype


def read_blocks(checkpoint: Checkpoint, part: Slice, first: int, count: int) -> Blocks | None:
    """Rows of a matrix [out, in], from row `first` on, as they are published; None where they are no such blocks."""
    encoding = part.stored.encoding
    if encoding is None:
        return None
    if part.transposed:
        return encoding.column_blocks(checkpoint, part.first_row, first + (part.columns or (0,))[0], count)
    return encoding.row_blocks(checkpoint, part.first_row + first, count)


def read_slice(checkpoint: Checkpoint, part: Slice, dtype: torch.dtype) -> torch.Tensor:
    """A copy of one expert matrix as [out, in], in another precision than the stored one."""
    import torch

    matrix = torch.empty(part.matrix_shape, dtype=dtype)
    read_rows(matrix, checkpoint, part)
    return matrix


def stored_slice(checkpoint: Checkpoint, part: Slice) -> torch.Tensor:
    """One expert matrix as [out, in], in place in its mapped file."""
    stored = _view(checkpoint, part.stored, part.offset, part.size, part.shape)
    matrix = stored if part.columns is None else stored[:, slice(*part.columns)]
    return matrix.T if part.transposed else matrix


def _view(checkpoint: Checkpoint, stored: StoredTensor, offset: int, size: int, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    dtype = raw.torch_dtype(stored)
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    buffer = checkpoint.buffer(stored)[offset : offset + size]
    if stored.offset % dtype.itemsize:  # the format allows odd header lengths; torch does not
        buffer = memoryview(bytearray(buffer))
    return torch.frombuffer(buffer, dtype=dtype).view(shape)
