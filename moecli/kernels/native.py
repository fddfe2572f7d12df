"""The native kernels: q4 and q8 times int8 activations, in C, by the best instructions of this processor."""

from __future__ import annotations

import ctypes
import sys
from array import array
from collections.abc import Sequence
from ctypes import c_char_p, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from itertools import count, takewhile
from pathlib import Path

import torch
from torch import Tensor

from moecli.errors import CheckpointError
from moecli.formats import bytes_for
from moecli.formats.blocks import check_finite
from moecli.formats.tiles import LARGEST
from moecli.spec import Activation

FORMATS = {"q4": 0, "q8": 1}
ACTIVATIONS = {Activation.SILU: 0, Activation.GELU: 1, Activation.GELU_TANH: 2, Activation.RELU: 3}

Expert = tuple[Tensor, Tensor, Tensor]  # packed gate [I, D], up [I, D], down [D, I]

_VERSION = 1  # of the structures below: moecli_version() of a library that has the same
_FILE = Path(__file__).with_name("_native.so")
_NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_NO_MEMORY, _NOT_FINITE, _TOO_LARGE = 1, 2, 3


class _Team(ctypes.Structure):
    _fields_ = (("parallel", c_void_p), ("barrier", c_void_p), ("threads", c_int32))


class _Tokens(ctypes.Structure):
    _fields_ = (("numbers", c_void_p), ("type", c_int32), ("count", c_int64), ("width", c_int64))


class _Linear(ctypes.Structure):
    _fields_ = (
        ("team", _Team),
        ("format", c_int32),
        ("input", _Tokens),
        ("packed", c_void_p),
        ("rows", c_int64),
        ("output", c_void_p),
    )


class _FeedForward(ctypes.Structure):
    _fields_ = (
        ("team", _Team),
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
        ("team", _Team),
        ("format", c_int32),
        ("type", c_int32),
        ("weights", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("row_stride", c_int64),
        ("column_stride", c_int64),
        ("packed", c_void_p),
    )


@dataclass(slots=True)
class _Library:
    """The loaded library, its usable tiers by name, and the one in use."""

    functions: ctypes.CDLL
    parallel: int | None
    barrier: int | None
    tiers: dict[str, int]
    tier: str

    def team(self) -> _Team:
        return _Team(self.parallel, self.barrier, torch.get_num_threads())

    def call(self, function: str, arguments: ctypes.Structure) -> int:
        outcome: int = self.functions[function](self.tiers[self.tier], ctypes.byref(arguments))
        if outcome == _NO_MEMORY:
            raise MemoryError
        return outcome


def available(dtype: str) -> bool:
    """Whether products with this format can be computed here."""
    return dtype in FORMATS and _library() is not None


def tiers() -> tuple[str, ...]:
    """The instruction sets the library was built for and this processor has, best first."""
    library = _library()
    return tuple(library.tiers) if library else ()


def tier() -> str | None:
    """The one in use: the best, unless another was asked for."""
    library = _library()
    return library.tier if library else None


def use_tier(name: str) -> None:
    """Compute with another one from now on. No result changes by a bit."""
    library = _loaded()
    if name not in library.tiers:
        raise ValueError(f"no tier {name} here, but {', '.join(library.tiers)}")
    library.tier = name


def linear(dtype: str, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """x [T, in] times the packed matrix [out, in]: [T, out], in x's precision.

    x is rounded to int8 with a scale per 32. Each number depends on its token and its row alone, to the last bit.
    """
    library = _loaded()
    rows = _rows(x, shape[1])
    address = _address(packed, bytes_for(dtype, shape))
    output = rows.new_empty(rows.shape[0], shape[0])
    library.call(
        "moecli_linear",
        _Linear(library.team(), FORMATS[dtype], _tokens(rows), address, shape[0], output.data_ptr()),
    )
    return output if output.dtype == x.dtype else output.to(x.dtype)


def feed_forward(dtype: str, x: Tensor, experts: Sequence[Expert], width: int, activation: Activation) -> Tensor:
    """Each expert's down(activation(gate x) * up x) for x [T, D], D to `width` to D: [n, T, D] in fp32.

    x and what is between are rounded to int8 with a scale per 32. No number depends on the other tokens or experts.
    """
    library = _loaded()
    rows = _rows(x, x.shape[-1])
    inner, outer = bytes_for(dtype, (width, rows.shape[1])), bytes_for(dtype, (rows.shape[1], width))
    addresses = array("Q")
    for gate, up, down in experts:
        addresses.extend((_address(gate, inner), _address(up, inner), _address(down, outer)))
    output = torch.empty(len(experts), *rows.shape)
    library.call(
        "moecli_feed_forward",
        _FeedForward(
            library.team(),
            FORMATS[dtype],
            ACTIVATIONS[activation],
            _tokens(rows),
            addresses.buffer_info()[0],
            len(experts),
            width,
            output.data_ptr(),
        ),
    )
    return output


def pack(dtype: str, weights: Tensor) -> Tensor:
    """The same bytes, and the same errors, as `formats.pack`: much faster."""
    library = _loaded()
    if weights.dim() != 2 or not weights.is_cpu:
        raise ValueError("only a matrix on the CPU can be packed")
    if weights.dtype not in _NUMBERS:
        weights = weights.float()
    rows, columns = weights.shape
    packed = torch.empty(bytes_for(dtype, (rows, columns)), dtype=torch.uint8)
    outcome = library.call(
        "moecli_pack",
        _Pack(
            library.team(),
            FORMATS[dtype],
            _NUMBERS[weights.dtype],
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


def _rows(x: Tensor, width: int) -> Tensor:
    """x as the kernels read it: dense rows in fp32 or bf16."""
    if x.dim() != 2 or x.shape[1] != width or not x.is_cpu:
        raise ValueError(f"activations {tuple(x.shape)} on {x.device}: not rows of {width} on the CPU")
    return x.contiguous() if x.dtype in (torch.float32, torch.bfloat16) else x.float().contiguous()


def _tokens(rows: Tensor) -> _Tokens:
    return _Tokens(rows.data_ptr(), _NUMBERS[rows.dtype], rows.shape[0], rows.shape[1])


def _address(packed: Tensor, size: int) -> int:
    if packed.dtype != torch.uint8 or packed.numel() != size or not packed.is_contiguous() or not packed.is_cpu:
        raise ValueError(f"{packed.dtype} {tuple(packed.shape)} on {packed.device}: not the {size} bytes of a matrix")
    return packed.data_ptr()


def _loaded() -> _Library:
    library = _library()
    if library is None:
        raise ValueError("the native kernels are not built")
    return library


@cache
def _library() -> _Library | None:
    """None where it was not built, or for another version of this file."""
    try:
        functions = ctypes.CDLL(str(_FILE))
    except OSError:
        return None
    if functions.moecli_version() != _VERSION:
        return None
    functions.moecli_tier.restype = c_char_p
    for name in ("moecli_linear", "moecli_feed_forward", "moecli_pack"):
        functions[name].argtypes = (c_int, c_void_p)
    names = takewhile(lambda name: name is not None, map(functions.moecli_tier, count()))
    tiers = {name.decode(): index for index, name in enumerate(names) if name}
    return _Library(functions, *_openmp(), tiers, next(iter(tiers)))


def _openmp() -> tuple[int | None, int | None]:
    """Two entry points of the OpenMP runtime that torch itself uses; a second runtime would fight it for the cores."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    try:
        runtime = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"))
        addresses = [ctypes.cast(runtime[name], c_void_p).value for name in ("GOMP_parallel", "GOMP_barrier")]
    except (OSError, AttributeError):
        return None, None
    return addresses[0], addresses[1]
