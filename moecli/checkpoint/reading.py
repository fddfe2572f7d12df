"""Stored tensors as torch tensors: in place in their mapped file, or copied and converted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from moecli.checkpoint.binding import Slice
from moecli.checkpoint.folder import Checkpoint
from moecli.checkpoint.stored import StoredTensor

if TYPE_CHECKING:
    import torch

_TORCH_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "I8": "int8"}


def read_into(target: torch.Tensor, checkpoint: Checkpoint, stored: StoredTensor, offset: int = 0) -> None:
    """Fill `target`, contiguous, from the file, starting `offset` bytes in; converted if the precision differs."""
    import torch

    if target.numel() == 0:
        return
    dtype = getattr(torch, _TORCH_NAMES[stored.dtype])
    staging = target if target.dtype is dtype else torch.empty(target.shape, dtype=dtype)
    checkpoint.read_into(_bytes(staging), stored, offset)
    if staging is not target:
        target.copy_(staging)


def read_rows(target: torch.Tensor, checkpoint: Checkpoint, part: Slice, first: int = 0) -> None:
    """Fill `target`, contiguous, with rows of a matrix [out, in], or numbers of a vector, from row `first` on.

    Converted if the precision differs.
    """
    import torch

    stored = part.stored
    if part.transposed:
        columns = first + (part.columns[0] if part.columns else 0), len(target)
        dtype = getattr(torch, _TORCH_NAMES[stored.dtype])
        found = _read_columns(checkpoint, stored, part.offset, part.shape, *columns, dtype)
        if stored.scales is not None:
            found = _scaled(found, checkpoint, stored, part, columns)
        target.copy_(found.T)
    else:
        numbers = math.prod(part.shape)
        skipped = first * math.prod(target.shape[1:]) * part.size // numbers if numbers else 0
        read_into(target, checkpoint, part.stored, part.offset + skipped)


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


def _read_columns(
    checkpoint: Checkpoint, stored: StoredTensor, offset: int, shape: tuple[int, ...], first: int, count: int,
    dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """Some columns of a matrix of `shape`, as stored, that lies `offset` bytes inside a tensor: [rows, count]."""
    import torch

    found = torch.empty((shape[0], count), dtype=dtype)
    item = dtype.itemsize
    if found.numel():
        checkpoint.read_strided(_bytes(found), stored, offset + first * item, count * item, shape[1] * item)
    return found


def _scaled(
    codes: torch.Tensor, checkpoint: Checkpoint, stored: StoredTensor, part: Slice, columns: tuple[int, int]
) -> torch.Tensor:
    """int8 [in, count] times the scales of its outputs and groups of inputs, rounded to bf16 once."""
    import torch

    scales = stored.scales
    assert scales is not None, "only what has scales is scaled"
    groups = scales.shape[-2]
    offset = part.offset * scales.size // stored.size
    dtype = getattr(torch, _TORCH_NAMES[scales.dtype])
    beside = _read_columns(checkpoint, scales, offset, (groups, part.shape[1]), *columns, dtype)
    numbers = codes.view(groups, len(codes) // groups, columns[1]).float() * beside.float()[:, None]
    return numbers.view(codes.shape).bfloat16()


def _bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    return tensor.view(-1).view(torch.uint8).numpy().data


def _view(checkpoint: Checkpoint, stored: StoredTensor, offset: int, size: int, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    dtype = getattr(torch, _TORCH_NAMES[stored.dtype])
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    buffer = checkpoint.buffer(stored)[offset : offset + size]
    if stored.offset % dtype.itemsize:  # the format allows odd header lengths; torch does not
        buffer = memoryview(bytearray(buffer))
    return torch.frombuffer(buffer, dtype=dtype).view(shape)
