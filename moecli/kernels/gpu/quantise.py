"""Activations as int8 with one float32 scale for each 32 columns of a token, on a GPU: the same bits as on the CPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUP = tl.constexpr(32)
_EPS = tl.constexpr(1e-30)
_ROUND_MAGIC = tl.constexpr(12582912.0)  # 1.5 * 2**23: added to a small number, it leaves the nearest whole one
_INFINITE = tl.constexpr(0x7F800000)
_BLOCK = 64  # groups of a program


@triton.jit
def _nothing() -> None:
    """Tells whether functions of this module are compiled or interpreted."""


COMPILED = tl.constexpr(isinstance(_nothing, triton.JITFunction) and torch.version.hip is None)


@triton.jit
def round_to_int(numbers):
    """The nearest whole number, ties to even, int32, of numbers below 2**22."""
    if COMPILED:  # a sum with the magic number could become one rounding with the product before it
        return tl.inline_asm_elementwise("cvt.rni.s32.f32 $0, $1;", "=r,f", [numbers], tl.int32, True, 1)
    else:
        return ((numbers + _ROUND_MAGIC) - _ROUND_MAGIC).to(tl.int32)


@triton.jit
def codes_and_scales(groups):
    """Of groups [n, 32] of float32: int32 codes [n, 32], and scales [n] / 128, as the weights' scales want them."""
    largest = tl.max(groups.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)
    absmax = largest.to(tl.float32, bitcast=True)
    usable = (absmax >= _EPS) & (largest < _INFINITE)
    full = tl.full(absmax.shape, 127, tl.float32)
    inverse = tl.where(usable, tl.div_rn(full, tl.where(usable, absmax, 1.0)), 0.0)
    scales = tl.where(usable, tl.div_rn(absmax, full) * 0.0078125, float("nan"))  # what is not finite stays visible
    scales = tl.where(absmax < _EPS, 0.0, scales)
    return round_to_int(tl.where(usable[:, None], groups, 0.0) * inverse[:, None]), scales


@triton.jit
def place_in_group(column):
    """Where column 0..31 of a group is in products of prompts: 16 h + 4 j + b at 8 j + 2 b + h."""
    return column // 4 % 4 * 8 + column % 4 * 2 + column // 16


@triton.jit
def _quantise(x, codes, scales, count, columns, groups, IN_PLACES: tl.constexpr, BLOCK: tl.constexpr):
    """Some of all `count` groups."""
    group = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    token = group // groups
    column = (group % groups)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = (group < count)[:, None]
    numbers = tl.load(x + token[:, None] * columns + column, inside & (column < columns), other=0.0)
    found, scale = codes_and_scales(numbers.to(tl.float32))
    place = tl.arange(0, GROUP)
    place = group[:, None] * GROUP + (place_in_group(place) if IN_PLACES else place)[None, :]
    tl.store(codes + place, found.to(codes.dtype.element_ty), inside)
    tl.store(scales + group, scale, group < count)


def quantise(x: Tensor, for_prompts: bool = False) -> tuple[Tensor, Tensor]:
    """x [T, K] as codes [T, K up to a multiple of 32] and float32 scales / 128 [T, groups of 32].

    Codes are int8 in the order of columns; those for products of prompts are fp16, in the order of `place_in_group`.
    """
    tokens, columns = x.shape
    groups = -(-columns // GROUP.value)
    codes = torch.empty(
        tokens, groups * GROUP.value, dtype=torch.float16 if for_prompts else torch.int8, device=x.device
    )
    scales = torch.empty(tokens, groups, dtype=torch.float32, device=x.device)
    if codes.numel():
        grid = (triton.cdiv(scales.numel(), _BLOCK),)
        with torch.cuda.device_of(x):
            _quantise[grid](x.contiguous(), codes, scales, scales.numel(), columns, groups, for_prompts, _BLOCK)
    return codes, scales
