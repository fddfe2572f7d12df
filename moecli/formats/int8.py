"""bitsandbytes LLM.int8 rows: int8 codes and one float32 maximum per row.

The bytes are those of bitsandbytes' own `int8_vectorwise_quant`: the codes [out, in], then the rows' largest absolute
values, float32 little-endian. weight = code * maximum / 127.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moecli.formats import bytes_for
from moecli.formats.blocks import check_finite, row_blocks

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_STEP = 7.874015718698502e-3  # bitsandbytes' 1/127
_FAINT = 1e-36  # a row below it is zeros: the inverse of its maximum would overflow


def pack(weights: Tensor) -> Tensor:
    """The bytes of a matrix [out, in]."""
    import torch

    rows, columns = weights.shape
    packed = torch.empty(bytes_for("int8", (rows, columns)), dtype=torch.uint8)
    codes = packed[: rows * columns].view(torch.int8).view(rows, columns)
    largest = torch.zeros(rows)
    for block in row_blocks(rows, columns) if columns else ():
        values = weights[block].detach().float()
        part = values.abs().amax(1)
        check_finite(part)
        part.masked_fill_(part < _FAINT, 0.0)
        inverse = (127.0 / part).masked_fill_(part == 0, 0.0)
        codes[block] = values.mul(inverse.unsqueeze(1)).round_().to(torch.int8)
        largest[block] = part
    packed[codes.numel() :] = largest.view(torch.uint8)
    return packed


def unpack(packed: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The matrix [out, in] again."""
    return unpack_rows(packed, shape, dtype, 0, shape[0])


def unpack_rows(packed: Tensor, shape: tuple[int, int], dtype: torch.dtype, first: int, last: int) -> Tensor:
    """Some rows of it."""
    import torch

    rows, columns = shape
    codes = packed[: rows * columns].view(torch.int8).view(shape)[first:last]
    largest = packed[rows * columns :].clone().view(torch.float32)[first:last].unsqueeze(1)
    weights = torch.empty(last - first, columns, dtype=dtype, device=packed.device)
    for block in row_blocks(last - first, columns):
        weights[block] = codes[block] * largest[block] * _STEP
    return weights
