"""Triton's interpreter, which runs kernels on the CPU: to be asked for before anybody imports Triton."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.support import assembly


def interpret() -> bool:
    """Have Triton interpret its kernels in this process; False where there is no Triton.

    What is wrong with it (Triton 3.6 to 3.9) is mended: its scalars are arrays of one number, which numpy 2.4 no longer
    takes for the bounds of a loop; it cuts float32 to bfloat16 where a card rounds, and multiplies matrices of bfloat16
    as the integers that hold them. Those of float16 it multiplies slowly. Inline assembly, which it knows not at all, is
    run by the definitions of its instructions.
    """
    if find_spec("triton") is None:
        return False
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language as tl
    from triton.runtime import interpreter

    builder, number = interpreter.InterpreterBuilder, interpreter.TensorHandle
    patch, dot, cast = interpreter._patch_lang_tensor, builder.create_dot, builder.cast_impl

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        types = source.dtype.scalar, target.scalar
        if types == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16()
            return number(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)
        return wide(source) if types == (tl.bfloat16, tl.float32) else cast(self, source, target)

    def wide(operand: Any) -> Any:
        if operand.dtype.scalar == tl.bfloat16:
            return number((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
        if operand.dtype.scalar == tl.float16:
            return number(operand.data.astype(np.float32), tl.float32)
        return operand

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return dot(self, wide(a), wide(b), *others)

    def create_inline_asm(
        self: Any, text: str, constraints: str, values: Any, types: Any, pure: bool, pack: int
    ) -> Any:
        assert pack == 1, "a lane at a time"
        made = assembly.run(text, len(types), [value.data.view(np.uint32) for value in values], assembly.OPERATIONS)
        handles = [number(each.view(np.int32), tl.int32) for each in made]
        return SimpleNamespace(get_result=handles.__getitem__)

    interpreter._patch_lang_tensor = patch_tensor
    builder.create_inline_asm = create_inline_asm
    interpreter.interpreter_builder.options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    builder.cast_impl, builder.create_dot = cast_impl, create_dot
    return True
