"""MLX: whole numbers of a few bits without gaps in words of 32, times a scale plus a bias of their group of inputs.

`weight` [.., out, words], `scales` and `biases` [.., out, groups]; how many share a scale (32, 64 or 128) config.json
says, some modules apart, and the shapes then tell the bits. Computed in the scales' precision, product and sum each
rounded, as `mlx.core.dequantize` does. Other modes have no biases: mxfp4 and nvfp4 as in float4.py but without a number
for the whole matrix, mxfp8 of e4m3 with an exponent for 32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moecli.checkpoint import raw
from moecli.checkpoint.encodings._scheme import FLOAT_FORMATS, Matrix, Read, misfit, mlx_module
from moecli.checkpoint.encodings._words import unpacked
from moecli.checkpoint.encodings.float4 import Float4
from moecli.checkpoint.stored import Encoding, StoredTensor
from moecli.errors import CheckpointError
from moecli.formats import plain

if TYPE_CHECKING:
    from torch import Tensor

    from moecli.checkpoint.folder import Checkpoint

BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, slots=True)
class Affine(Encoding):
    """`parts` are codes, scales and biases."""

    bits: int
    groups: int

    @property
    def name(self) -> str:
        return f"MLX {self.bits}-bit"

    def rows(self, checkpoint: Checkpoint, first: int, count: int) -> Tensor:
        codes, scales, biases = self.parts
        width = 4 * codes.shape[-1]
        dtype = plain.torch_dtype(self.format)
        words = raw.octets(checkpoint, codes, first * width, count * width).view(count, width)
        numbers = unpacked(words, self.bits).view(count, self.groups, -1).to(dtype)
        for part, add in ((scales, False), (biases, True)):
            found = raw.rows(checkpoint, part, first, count)
            raw.finite(found, part)
            numbers = numbers + found[..., None] if add else numbers * found[..., None]
        return numbers.view(count, -1)


@dataclass(frozen=True, slots=True)
class Float8(Encoding):
    """`parts` are numbers in e4m3 and the exponents of their groups, plus 127. Their product is rounded once."""

    groups: int

    @property
    def name(self) -> str:
        return "MLX mxfp8"

    def rows(self, checkpoint: Checkpoint, first: int, count: int) -> Tensor:
        import torch

        codes, scales = self.parts
        width = 4 * codes.shape[-1]
        octets = raw.octets(checkpoint, codes, first * width, count * width)
        numbers = raw.finite(octets.view(torch.float8_e4m3fn), codes).view(count, self.groups, -1)
        exponents = raw.octets(checkpoint, scales, first * self.groups, count * self.groups)
        found = torch.ldexp(numbers, exponents.view(count, -1, 1).int() - 127).to(plain.torch_dtype(self.format))
        raw.finite(found, scales)
        return found.view(count, -1)


def read(matrix: Matrix, scheme: Mapping[str, Any], format: str, read: Read | None) -> StoredTensor:
    """A matrix [out, in], or a stack of them, of whole numbers."""
    codes, scales, biases = matrix.codes, matrix.beside(r"\.scales"), matrix.beside(r"\.biases")
    said = mlx_module(scheme, matrix.name)
    *rows, words = codes.shape
    *found, groups = scales.shape or (0,)
    group = said.get("group_size", 64)
    if group not in (32, 64, 128):
        raise CheckpointError(
            f"{matrix.name} has groups of {group!r} numbers, which are not read", "32, 64 and 128 are"
        )
    bits, rest = divmod(32 * words, max(group * groups, 1))
    if found != rows or not rows or biases.shape != scales.shape or rest or bits not in BITS or codes.dtype != "U32":
        raise misfit(codes, f"in {codes.dtype}, does not fit scales of {list(scales.shape)}, one for {group} numbers")
    if said.get("bits", bits) != bits:
        raise misfit(codes, f"has {bits} bits a number, and {said['bits']} by config.json")
    if scales.dtype not in FLOAT_FORMATS or biases.dtype != scales.dtype:
        raise misfit(scales, f"and the biases are {scales.dtype} and {biases.dtype}")
    encoding = Affine((codes, scales, biases), FLOAT_FORMATS[scales.dtype], bits, groups)
    return matrix.stored((*rows, group * groups), encoding)


def read_floats(matrix: Matrix, scheme: Mapping[str, Any], format: str, read: Read | None) -> StoredTensor:
    """A matrix [out, in], or a stack of them, in mode mxfp4 or nvfp4."""
    codes, scales = matrix.codes, matrix.beside(r"\.scales")
    *rows, words = codes.shape
    *found, groups = scales.shape or (0,)
    group = 8 * words // max(groups, 1)
    if found != rows or not rows or 8 * words != group * groups or group not in (16, 32) or scales.dtype != "U8":
        raise misfit(codes, f"does not fit scales of {list(scales.shape)} in {scales.dtype}, for 16 or 32 numbers each")
    mode = mlx_module(scheme, matrix.name).get("mode", "affine")
    if mode != ("mxfp4" if group == 32 else "nvfp4"):
        raise misfit(codes, f"has a scale for {group} numbers, which mode {mode!r} has not")
    inputs = group * groups
    return matrix.stored((*rows, inputs), Float4((codes, scales), "bf16", group, inputs, math.prod(rows)))


def read_float8(matrix: Matrix, scheme: Mapping[str, Any], format: str, read: Read | None) -> StoredTensor:
    """A matrix [out, in], or a stack of them, in mode mxfp8."""
    codes, scales = matrix.codes, matrix.beside(r"\.scales")
    *rows, words = codes.shape
    *found, groups = scales.shape or (0,)
    if found != rows or not rows or 4 * words != 32 * groups:
        raise misfit(codes, f"does not fit scales of {list(scales.shape)}, one for 32 numbers")
    mode = mlx_module(scheme, matrix.name).get("mode", "affine")
    if mode != "mxfp8":
        raise misfit(codes, f"has 8-bit floats with a scale for 32, which mode {mode!r} has not")
    return matrix.stored((*rows, 32 * groups), Float8((codes, scales), "bf16", groups))
