"""Activations as int8 with a scale for each 32 columns, rounded as the CPU's kernels round them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUP = 32
_FAINT = tl.constexpr(1e-30)
_MAGIC = tl.constexpr(12582912.0)  # added to a number below 2**22 it leaves the nearest whole one, ties to even


@triton.jit
def rounded(numbers):
    """float32 [..., 32] to int8 codes and the scale / 128 [...] of each group. Launch without fused products."""
    largest = tl.max(tl.abs(numbers), axis=len(numbers.shape) - 1)
    inverse = tl.math.div_rn(127.0, largest)
    codes = (numbers * tl.expand_dims(inverse, len(numbers.shape) - 1) + _MAGIC).to(tl.int32, bitcast=True) << 24 >> 24
    scale = tl.math.div_rn(tl.math.div_rn(largest, 127.0), 128.0)
    sound = (largest >= _FAINT) & (largest < float("inf"))
    codes = tl.where(tl.expand_dims(sound, len(numbers.shape) - 1), codes, 0)
    return codes.to(tl.int8), tl.where(sound, scale, tl.where(largest < _FAINT, 0.0, float("nan")))


@triton.jit
def _quantise(x, codes, scales, columns, groups, stride, BLOCK: tl.constexpr):
    token = tl.program_id(0)
    group = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[:, None]
    column = group * 32 + tl.arange(0, 32)[None, :]
    numbers = tl.load(x + token.to(tl.int64) * stride + column, column < columns, 0.0).to(tl.float32)
    code, scale = rounded(numbers)
    at = token.to(tl.int64) * groups
    tl.store(codes + at * 32 + column, code, group < groups)
    tl.store(scales + at + group, tl.expand_dims(scale, 1), group < groups)


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 [T, groups * 32] and scales / 128, float32 [T, groups], of x [T, columns]."""
    tokens, columns = x.shape
    groups = -(-columns // GROUP)
    codes = torch.empty(tokens, groups * GROUP, dtype=torch.int8, device=x.device)
    scales = torch.empty(tokens, groups, dtype=torch.float32, device=x.device)
    block = min(32, triton.next_power_of_2(groups))
    _quantise[tokens, triton.cdiv(groups, block)](
        x, codes, scales, columns, groups, x.stride(0), block, enable_fp_fusion=False
    )
    return codes, scales
