"""Experts whose weights are plain numbers, row after row, for up to eight tokens: products by sums in float32."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from moecli.kernels.gpu.activations import NUMBERS, activate
from moecli.kernels.gpu.functions import device_function
from moecli.model.spec import Activation


@device_function
def _row_sums(matrix, row, rows, columns, x, BLOCK: tl.constexpr):
    """x [columns] times rows [R] of a matrix: float32 [R]. Rows that there are not give what the last gives."""
    start = tl.minimum(row, rows - 1).to(tl.int64) * columns
    sums = tl.zeros([row.shape[0], BLOCK], tl.float32)
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < columns
        numbers = tl.load(matrix + start[:, None] + column[None, :], inside[None, :], other=0.0)
        token = tl.load(x + column, inside, other=0.0)
        sums += numbers.to(tl.float32) * token.to(tl.float32)[None, :]
    return tl.sum(sums, 1)


@triton.jit
def _inner(
    records, ids, x, out, gate, up, rows, columns, top_k,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """R numbers inside one expert, for one token that takes it: activation(gate x) * up x."""
    choice = tl.program_id(1)
    address = tl.load(records + tl.load(ids + choice))
    if address == 0:
        return
    expert = tl.multiple_of(address.to(tl.pointer_type(x.dtype.element_ty)), 64)
    row = tl.program_id(0) * R + tl.arange(0, R)
    token = x + (choice // top_k).to(tl.int64) * columns
    hidden = _row_sums(expert + up, row, rows, columns, token, BLOCK)
    if GATED:
        hidden *= activate(_row_sums(expert + gate, row, rows, columns, token, BLOCK), ACTIVATION)
    else:
        hidden = activate(hidden, ACTIVATION)
    tl.store(out + choice.to(tl.int64) * rows + row, hidden.to(x.dtype.element_ty), row < rows)


@triton.jit
def _down(
    records, ids, x, out, down, rows, columns, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """R rows of one expert's last matrix, for one token that takes it."""
    choice = tl.program_id(1)
    address = tl.load(records + tl.load(ids + choice))
    if address == 0:
        return
    expert = tl.multiple_of(address.to(tl.pointer_type(x.dtype.element_ty)), 64)
    row = tl.program_id(0) * R + tl.arange(0, R)
    sums = _row_sums(expert + down, row, rows, columns, x + choice.to(tl.int64) * columns, BLOCK)
    tl.store(out + choice.to(tl.int64) * rows + row, sums, row < rows)


def experts(
    records: Tensor, downs: Tensor, ids: Tensor, x: Tensor, top_k: int, offsets: tuple[int | None, int, int],
    intermediate_size: int, activation: Activation, out: Tensor,
) -> None:  # fmt: skip
    """As `products.Experts`, of x [T, D] in the weights' type; `offsets` of gate, up and down in numbers."""
    gate, up, down = offsets
    choices, width = ids.numel(), x.shape[1]
    hidden = x.new_empty(choices, intermediate_size)
    rows = 4
    first, second = (min(1024, triton.next_power_of_2(columns)) for columns in (width, intermediate_size))
    _inner[triton.cdiv(intermediate_size, rows), choices](
        records, ids, x, hidden, gate or 0, up, intermediate_size, width, top_k, NUMBERS[activation], gate is not None,
        rows, first,
    )  # fmt: skip
    _down[triton.cdiv(width, rows), choices](
        downs, ids, hidden, out, down, width, intermediate_size, rows, second
    )  # fmt: skip
