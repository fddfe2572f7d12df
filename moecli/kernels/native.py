"""The native kernels: q4 and q8 times int8 activations, in C, by the best instructions of this processor."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from ctypes import c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from moecli.errors import CheckpointError
from moecli.formats import bytes_for
from moecli.formats.blocks import check_finite
from moecli.formats.tiles import LARGEST
from moecli.kernels.library import Team, library, loaded
from moecli.model.spec import Activation

FORMATS = {"q4": 0, "q8": 1}
ACTIVATIONS = {Activation.SILU: 0, Activation.GELU: 1, Activation.GELU_TANH: 2, Activation.RELU: 3}

Expert = tuple[Tensor, Tensor, Tensor]  # packed gate [I, D], up [I, D], down [D, I]

NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_NOT_FINITE, _TOO_LARGE = 2, 3


class _Tokens(ctypes.Structure):
    _fields_ = (("numbers", c_void_p), ("type", c_int32), ("count", c_int64), ("width", c_int64))


class _Linear(ctypes.Structure):
    _fields_ = (
        ("team", Team),
        ("format", c_int32),
        ("input", _Tokens),
        ("packed", c_void_p),
        ("rows", c_int64),
        ("output", c_void_p),
    )


class _FeedForward(ctypes.Structure):
    _fields_ = (
        ("team", Team),
        ("format", c_int32),
        ("activation", c_int32),
        ("input", _Tokens),
        ("matrices", c_void_p),
        ("experts", c_int64),
        ("inner", c_int64),
        ("output", c_void_p),
    )


class _Pack(ctypes.Structure):
    _fields_ = (
        ("team", Team),
        ("format", c_int32),
        ("type", c_int32),
        ("weights", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("row_stride", c_int64),
        ("column_stride", c_int64),
        ("packed", c_void_p),
    )


def available(dtype: str) -> bool:
    """Whether products with this format can be computed here."""
    return dtype in FORMATS and library() is not None


def linear(dtype: str, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """x [T, in] times the packed matrix [out, in]: [T, out], in x's precision.

    x is rounded to int8 with a scale per 32. Each number depends on its token and its row alone, to the last bit.
    """
    found = loaded()
    rows = _rows(x, shape[1])
    place = address(packed, bytes_for(dtype, shape))
    output = rows.new_empty(rows.shape[0], shape[0])
    found.call(
        "linear",
        _Linear(found.team(), FORMATS[dtype], _tokens(rows), place, shape[0], output.data_ptr()),
    )
    return output if output.dtype == x.dtype else output.to(x.dtype)


def feed_forward(dtype: str, x: Tensor, experts: Sequence[Expert], width: int, activation: Activation) -> Tensor:
    """Each expert's down(activation(gate x) * up x) for x [T, D], D to `width` to D: [n, T, D] in fp32.

    x and what is between are rounded to int8 with a scale per 32. No number depends on the other tokens or experts.
    """
    rows = _rows(x, x.shape[-1])
    inner, outer = bytes_for(dtype, (width, rows.shape[1])), bytes_for(dtype, (rows.shape[1], width))
    places = [address(*each) for gate, up, down in experts for each in ((gate, inner), (up, inner), (down, outer))]
    output = torch.empty(len(experts), *rows.shape)
    _call_experts("feed_forward", dtype, activation, rows, places, len(experts), width, output)
    return output


def gated(dtype: str, x: Tensor, gate: Tensor, up: Tensor, width: int, activation: Activation) -> Tensor:
    """The hidden numbers of `feed_forward`, before they are rounded: activation(gate x) * up x, fp32 [T, width]."""
    rows = _rows(x, x.shape[-1])
    size = bytes_for(dtype, (width, rows.shape[1]))
    output = torch.empty(len(rows), width)
    _call_experts("gated", dtype, activation, rows, [address(gate, size), address(up, size)], 1, width, output)
    return output


def pack(dtype: str, weights: Tensor) -> Tensor:
    """The same bytes, and the same errors, as `formats.pack`: much faster."""
    found = loaded()
    if weights.dim() != 2 or not weights.is_cpu:
        raise ValueError("only a matrix on the CPU can be packed")
    if weights.dtype not in NUMBERS:
        weights = weights.float()
    rows, columns = weights.shape
    packed = torch.empty(bytes_for(dtype, (rows, columns)), dtype=torch.uint8)
    outcome = found.call(
        "pack",
        _Pack(
            found.team(),
            FORMATS[dtype],
            NUMBERS[weights.dtype],
            weights.data_ptr(),
            rows,
            columns,
            *weights.stride(),
            packed.data_ptr(),
        ),
    )
    if outcome == _NOT_FINITE:
        check_finite(torch.tensor(torch.nan))
    if outcome == _TOO_LARGE:
        raise CheckpointError(f"a weight is larger than {LARGEST:.0f}: too large for fp16 scales")
    return packed


def _call_experts(
    function: str,
    dtype: str,
    activation: Activation,
    rows: Tensor,
    places: Sequence[int],
    experts: int,
    width: int,
    output: Tensor,
) -> None:
    found, addresses = loaded(), array("Q", places)
    found.call(
        function,
        _FeedForward(
            found.team(),
            FORMATS[dtype],
            ACTIVATIONS[activation],
            _tokens(rows),
            addresses.buffer_info()[0],
            experts,
            width,
            output.data_ptr(),
        ),
    )


def _rows(x: Tensor, width: int) -> Tensor:
    """x as the kernels read it: dense rows in fp32 or bf16."""
    if x.dim() != 2 or x.shape[1] != width or not x.is_cpu:
        raise ValueError(f"activations {tuple(x.shape)} on {x.device}: not rows of {width} on the CPU")
    return x.contiguous() if x.dtype in (torch.float32, torch.bfloat16) else x.float().contiguous()


def _tokens(rows: Tensor) -> _Tokens:
    return _Tokens(rows.data_ptr(), NUMBERS[rows.dtype], rows.shape[0], rows.shape[1])


def address(packed: Tensor, size: int) -> int:
    if packed.dtype != torch.uint8 or packed.numel() != size or not packed.is_contiguous() or not packed.is_cpu:
        raise ValueError(f"{packed.dtype} {tuple(packed.shape)} on {packed.device}: not the {size} bytes of a matrix")
    return packed.data_ptr()
