"""PTX instructions on registers of 32 bits, by their definitions, for arrays of them: what runs an assembly without a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]


def prmt(a: Words, b: Words, selector: Words) -> Words:
    """Bytes of a and b by the nibbles of a selector, whose top bits ask for a byte's sign."""
    pool = np.ascontiguousarray(np.stack(np.broadcast_arrays(a, b), -1)).view(np.uint8).reshape(*a.shape, 8)
    nibbles = (selector[..., None] >> np.arange(0, 16, 4, dtype=np.uint32)) & 15
    picked = np.take_along_axis(pool, (nibbles & 7).astype(np.int64), -1)
    picked = np.where(nibbles & 8, (picked >> 7) * np.uint8(255), picked)
    return np.ascontiguousarray(picked.astype(np.uint8)).view(np.uint32)[..., 0]


def dp4a(a: Words, b: Words, c: Words) -> Words:
    """c and four products of signed bytes."""
    left, right = (np.ascontiguousarray(each)[..., None].view(np.int8).astype(np.int32) for each in (a, b))
    return ((left * right).sum(-1, dtype=np.int32) + c.view(np.int32)).view(np.uint32)


OPERATIONS: dict[str, Callable[..., Words]] = {
    "mov.b32": lambda a: a,
    "and.b32": np.bitwise_and,
    "or.b32": np.bitwise_or,
    "xor.b32": np.bitwise_xor,
    "shr.u32": np.right_shift,
    "shl.b32": np.left_shift,
    "prmt.b32": prmt,
    "dp4a.s32.s32": dp4a,
}


def run(
    assembly: str, outputs: int, inputs: Sequence[Words], operations: dict[str, Callable[..., Words]]
) -> list[Words]:
    """What an assembly writes to its first registers, the outputs, where the inputs are the next ones."""
    registers = {f"${outputs + place}": value for place, value in enumerate(inputs)}
    for operation, operands in re.findall(r"([a-z]\w*\.[\w.]+) ([^;.]*);", assembly):
        target, *sources = operands.split(", ")
        values = [registers[s] if s in registers else np.full_like(inputs[0], int(s, 0)) for s in sources]
        registers[target] = operations[operation](*values)
    return [registers[f"${place}"] for place in range(outputs)]
