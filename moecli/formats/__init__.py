"""Numeric formats of weights, in one table: what each is, and the exact bytes it takes for a shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "FORMATS",
    "GROUPED",
    "OFFERED",
    "PLAIN",
    "SEARCHED",
    "TILED",
    "Codec",
    "Format",
    "bytes_for",
    "matmul",
    "pack",
    "stored_as",
    "unpack",
    "unpack_rows",
]


class Codec(Protocol):
    """What turns a matrix [out, in] into a format's bytes and back."""

    def pack(self, weights: Tensor) -> Tensor: ...

    def unpack(self, packed: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor: ...

    def unpack_rows(
        self, packed: Tensor, shape: tuple[int, int], dtype: torch.dtype, first: int, last: int
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Format:
    """One way to store a weight matrix [out, in]."""

    name: str
    meaning: str
    bits: float  # per weight, of a large matrix
    matrix_bytes: Callable[[int, int], int]
    codec: Callable[[], Codec]  # called only where there is torch


def _plain(size: int) -> Callable[[int, int], int]:
    return lambda rows, columns: rows * columns * size


def _tiles(tile_rows: int, tile_columns: int, size: int) -> Callable[[int, int], int]:
    """Rows and columns padded to whole tiles of `size` bytes."""
    return lambda rows, columns: -(-rows // tile_rows) * -(-columns // tile_columns) * size


def _codebook(index_bytes: int) -> Callable[[int, int], int]:
    """Strips of 16 rows: of each 32 columns indices and 16 bytes of multiples, of each 256 16 scales."""

    def matrix_bytes(rows: int, columns: int) -> int:
        groups = -(-columns // 32)
        return -(-rows // 16) * (groups * (16 + index_bytes) + -(-columns // 256) * 32)

    return matrix_bytes


def _nf4(rows: int, columns: int) -> int:
    """Half a byte per weight and one float32 per block of 64 along the flattened matrix."""
    weights = rows * columns
    return -(-weights // 2) + 4 * -(-weights // 64)


def _int8(rows: int, columns: int) -> int:
    """One byte per weight and one float32 per row."""
    return rows * columns + 4 * rows


def _unquantised(name: str) -> Callable[[], Codec]:
    def codec() -> Codec:
        from moecli.formats.unquantised import Unquantised

        return Unquantised(name)

    return codec


def _grouped(name: str) -> Callable[[], Codec]:
    def codec() -> Codec:
        from moecli.formats.grouped import CODECS

        return CODECS[name]

    return codec


def _module(name: str) -> Callable[[], Codec]:
    return lambda: cast(Codec, import_module(f"moecli.formats.{name}"))


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        each.name: each
        for each in (
            Format("fp32", "32-bit floats", 32, _plain(4), _unquantised("fp32")),
            Format("bf16", "16-bit brain floats", 16, _plain(2), _unquantised("bf16")),
            Format("fp16", "16-bit floats", 16, _plain(2), _unquantised("fp16")),
            Format(
                "q8",
                "8-bit codes, a scale per 32",
                8.5,
                _tiles(16, 32, 16 * 32 + 16 * 2),
                _module("q8"),
            ),
            Format("int8", "bitsandbytes LLM.int8 rows", 8, _int8, _module("int8")),
            Format(
                "q4",
                "4-bit codebook, a multiple of a scale per 16",
                4.3125,
                _codebook(256),
                _module("q4"),
            ),
            Format("nf4", "bitsandbytes NormalFloat, blocks of 64", 4.5, _nf4, _module("nf4")),
            Format(
                "q3",
                "3-bit codebook, a multiple of a scale per 16",
                3.3125,
                _codebook(192),
                _module("q3"),
            ),
            Format(
                "mxfp4",
                "as published: 4-bit floats, a power of two per 32",
                4.25,
                _tiles(16, 32, 16 * 16 + 16),
                _grouped("mxfp4"),
            ),
            Format(
                "q4_0",
                "as published in GGUF: 4-bit codes, a scale per 32",
                4.5,
                _tiles(16, 32, 16 * 16 + 16 * 2),
                _grouped("q4_0"),
            ),
            Format(
                "iq4_nl",
                "as published in GGUF: 4-bit codebook, a scale per 32",
                4.5,
                _tiles(16, 32, 16 * 16 + 16 * 2),
                _grouped("iq4_nl"),
            ),
        )
    }
)
PLAIN = ("fp32", "bf16", "fp16")
SEARCHED = ("q4", "q3", "q8")  # moecli's own: what is packed to them is quantised, by native code where there is some
GROUPED = ("mxfp4", "q4_0", "iq4_nl")  # those of others, kept as they are published
TILED = (*SEARCHED, *GROUPED)  # strips of 16 rows; activations are rounded to int8
OFFERED = tuple(name for name in FORMATS if name not in GROUPED)  # for any model


def bytes_for(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of one tensor. What is not a matrix is never quantised: it takes 2 bytes a number there."""
    if dtype in PLAIN or len(shape) == 2:
        rows = math.prod(shape[:-1])
        return FORMATS[dtype].matrix_bytes(rows, shape[-1] if shape else 1)
    return 2 * math.prod(shape)


def pack(dtype: str, weights: Tensor) -> Tensor:
    """The bytes of a matrix [out, in]: a flat uint8 tensor of `bytes_for(dtype, weights.shape)`.

    They depend on the weights alone: not on threads, strides or machine. CheckpointError where a weight is not finite
    or, for what lies in tiles, beyond fp16.
    """
    return FORMATS[dtype].codec().pack(weights)


def unpack(dtype: str, packed: Tensor, shape: tuple[int, int], to: torch.dtype) -> Tensor:
    """The matrix [out, in] again, rounded once to `to`."""
    return FORMATS[dtype].codec().unpack(packed, shape, to)


def unpack_rows(dtype: str, packed: Tensor, shape: tuple[int, int], to: torch.dtype, first: int, last: int) -> Tensor:
    """Rows first to last of it; `first` is a multiple of 64."""
    return FORMATS[dtype].codec().unpack_rows(packed, shape, to, first, last)


def matmul(dtype: str, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """x [T, in] times the matrix [out, in]: [T, out], in x's precision. A few rows are unpacked at a time."""
    import torch.nn.functional as F

    from moecli.formats.blocks import row_blocks

    rows, columns = shape
    codec = FORMATS[dtype].codec()
    if dtype in PLAIN:
        return F.linear(x, codec.unpack(packed, shape, x.dtype))
    product = x.new_empty(x.shape[0], rows)
    for block in row_blocks(rows, columns):
        weights = codec.unpack_rows(packed, shape, x.dtype, block.start, block.stop)
        product[:, block] = F.linear(x, weights)
    return product


def stored_as(name: str | None) -> str:
    """The format a config.json's dtype names; bf16 where it says nothing or something else."""
    return {"float32": "fp32", "float16": "fp16"}.get(name or "", "bf16")
