"""Triton's interpreter, which runs kernels on the CPU: to be asked for before anybody imports Triton."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import numpy as np


def interpret() -> bool:
    """Have Triton interpret its kernels in this process; False where there is no Triton.

    Three faults of Triton 3.6 there are mended: its scalars are arrays of one number, which numpy 2.4 no longer takes
    for the bounds of a loop; it multiplies bfloat16 as the integers that hold it; and it multiplies float16 slowly.
    """
    if find_spec("triton") is None:
        return False
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language as tl
    from triton.runtime import interpreter

    patch, dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    def wide(operand: Any) -> Any:
        if operand.dtype == tl.bfloat16:
            numbers = (operand.data.astype(np.uint32) << 16).view(np.float32)
        elif operand.dtype == tl.float16:
            numbers = operand.data.astype(np.float32)
        else:
            return operand
        return interpreter.TensorHandle(numbers, tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return dot(self, wide(a), wide(b), *others)

    interpreter._patch_lang_tensor = patch_tensor
    interpreter.InterpreterBuilder.create_dot = create_dot
    return True
