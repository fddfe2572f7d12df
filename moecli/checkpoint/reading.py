"""Stored tensors as torch tensors: in place in their mapped file, or copied and converted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moecli.checkpoint.binding import Slice
from moecli.checkpoint.safetensors import Checkpoint, StoredTensor

if TYPE_CHECKING:
    import torch

_TORCH_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def read_into(target: torch.Tensor, checkpoint: Checkpoint, stored: StoredTensor, offset: int = 0) -> None:
    """Fill `target`, contiguous, from the file, starting `offset` bytes in; converted if the precision differs."""
    import torch

    if target.numel() == 0:
        return
    dtype = getattr(torch, _TORCH_NAMES[stored.dtype])
    staging = target if target.dtype is dtype else torch.empty(target.shape, dtype=dtype)
    checkpoint.read_into(staging.view(-1).view(torch.uint8).numpy().data, stored, offset)
    if staging is not target:
        target.copy_(staging)


def read_slice(checkpoint: Checkpoint, part: Slice, dtype: torch.dtype) -> torch.Tensor:
    """A copy of one expert matrix as [out, in], in another precision than the stored one."""
    import torch

    matrix = torch.empty(part.shape, dtype=dtype)
    read_into(matrix, checkpoint, part.stored, part.offset)
    return _as_matrix(matrix, part)


def stored_slice(checkpoint: Checkpoint, part: Slice) -> torch.Tensor:
    """One expert matrix as [out, in], in place in its mapped file."""
    return _as_matrix(_view(checkpoint, part.stored, part.offset, part.size, part.shape), part)


def _as_matrix(stored: torch.Tensor, part: Slice) -> torch.Tensor:
    """What is stored, less what lies beside it, as [out, in]."""
    matrix = stored if part.columns is None else stored[:, slice(*part.columns)]
    return matrix.T if part.transposed else matrix


def _view(checkpoint: Checkpoint, stored: StoredTensor, offset: int, size: int, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    dtype = getattr(torch, _TORCH_NAMES[stored.dtype])
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    buffer = checkpoint.buffer(stored)[offset : offset + size]
    if stored.offset % dtype.itemsize:  # the format allows odd header lengths; torch does not
        buffer = memoryview(bytearray(buffer))
    return torch.frombuffer(buffer, dtype=dtype).view(shape)
