"""Numeric formats of weights, in one table: what each is, and the exact bytes it takes for a shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["FORMATS", "PLAIN", "Format", "bytes_for", "stored_as"]


@dataclass(frozen=True, slots=True)
class Format:
    """One way to store a weight matrix [out, in]."""

    name: str
    meaning: str
    bits: float  # per weight, of a large matrix
    matrix_bytes: Callable[[int, int], int]
    runnable: bool = True


def _plain(size: int) -> Callable[[int, int], int]:
    return lambda rows, columns: rows * columns * size


def _tiles(tile_rows: int, tile_columns: int, size: int) -> Callable[[int, int], int]:
    """Rows and columns padded to whole tiles of `size` bytes."""
    return lambda rows, columns: -(-rows // tile_rows) * -(-columns // tile_columns) * size


def _nf4(rows: int, columns: int) -> int:
    """Half a byte per weight and one float32 per block of 64 along the flattened matrix."""
    weights = rows * columns
    return -(-weights // 2) + 4 * -(-weights // 64)


def _int8(rows: int, columns: int) -> int:
    """One byte per weight and one float32 per row."""
    return rows * columns + 4 * rows


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        each.name: each
        for each in (
            Format("fp32", "32-bit floats", 32, _plain(4)),
            Format("bf16", "16-bit brain floats", 16, _plain(2)),
            Format("fp16", "16-bit floats", 16, _plain(2)),
            Format("q8", "8-bit codes, a scale per 32", 8.5, _tiles(16, 32, 16 * 32 + 16 * 2), runnable=False),
            Format("int8", "bitsandbytes LLM.int8 rows", 8, _int8, runnable=False),
            Format("q4", "4-bit codebook, a scale per 64", 4.25, _tiles(16, 128, 16 * 64 + 32 * 2), runnable=False),
            Format("nf4", "bitsandbytes NormalFloat, blocks of 64", 4.5, _nf4, runnable=False),
        )
    }
)
PLAIN = ("fp32", "bf16", "fp16")


def bytes_for(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of one tensor. What is not a matrix is never quantised: it takes 2 bytes a number there."""
    if dtype in PLAIN or len(shape) == 2:
        rows = math.prod(shape[:-1])
        return FORMATS[dtype].matrix_bytes(rows, shape[-1] if shape else 1)
    return 2 * math.prod(shape)


def stored_as(name: str | None) -> str:
    """The format a config.json's dtype names; bf16 where it says nothing or something else."""
    return {"float32": "fp32", "float16": "fp16"}.get(name or "", "bf16")
