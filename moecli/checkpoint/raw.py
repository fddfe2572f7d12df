"""Bytes of stored tensors as torch tensors, numbers and codes as they lie; nothing is decoded."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from moecli.checkpoint.stored import StoredTensor
from moecli.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from moecli.checkpoint.folder import Checkpoint

_TORCH_NAMES = {
    "F32": "float32", "BF16": "bfloat16", "F16": "float16", "I8": "int8", "U8": "uint8", "I32": "int32",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


def torch_dtype(stored: StoredTensor) -> torch.dtype:
    """What its numbers or codes are in torch."""
    import torch

    dtype: torch.dtype = getattr(torch, _TORCH_NAMES[stored.dtype])
    return dtype


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    import torch

    return tensor.view(-1).view(torch.uint8).numpy().data


def rows(
    checkpoint: Checkpoint, stored: StoredTensor, first: int, count: int, width: int | None = None
) -> Tensor:  # fmt: skip
    """Rows of a matrix or of a stack, from row `first` on: [count, width]. By default as long as the last axis."""
    import torch

    found = torch.empty((count, width or stored.shape[-1]), dtype=torch_dtype(stored))
    if found.numel():
        checkpoint.read_into(as_bytes(found), stored, first * found.shape[1] * found.element_size())
    return found


def octets(checkpoint: Checkpoint, stored: StoredTensor, first: int, count: int) -> Tensor:
    """Some bytes of a tensor, whatever its numbers are: uint8 [count]."""
    import torch

    found = torch.empty(count, dtype=torch.uint8)
    if count:
        checkpoint.read_into(as_bytes(found), stored, first)
    return found


def whole(checkpoint: Checkpoint, stored: StoredTensor) -> Tensor:
    """All of a small tensor, in its shape."""
    return rows(checkpoint, stored, 0, 1, math.prod(stored.shape)).view(stored.shape)


def columns(
    checkpoint: Checkpoint, stored: StoredTensor, top: int, height: int, first: int, count: int,
    width: int | None = None,
) -> Tensor:  # fmt: skip
    """Columns of the rows from `top` on: [height, count]. Rows are as long as the last axis, or `width`."""
    import torch

    found = torch.empty((height, count), dtype=torch_dtype(stored))
    item, width = found.element_size(), width or stored.shape[-1]
    if found.numel():
        start = (top * width + first) * item
        checkpoint.read_strided(as_bytes(found), stored, start, count * item, width * item)
    return found


def finite(scales: Tensor, of: StoredTensor) -> Tensor:
    """The same, in float32. CheckpointError if one of them is no number that can be multiplied by."""
    found = scales.float()
    if not bool(found.isfinite().all()):
        raise CheckpointError(f"{of.name} holds a scale that is infinite or no number", "fetch the file again")
    return found
