"""bitsandbytes: 4-bit indices into a table (nf4, fp4) times the maximum of their block; int8 times that of their row.

Blocks lie along the flattened matrix, two numbers to a byte, the first in the high bits. With double quantisation the
maxima are indices of 8 bits themselves, into a table, in blocks, with a mean that is added. What the matrix is, is said
in JSON, as a tensor of bytes: `weight.quant_state.bitsandbytes__nf4`. Computed in float32 and rounded once, as there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moecli.checkpoint import raw
from moecli.checkpoint.encodings._scheme import Matrix, Read, misfit
from moecli.checkpoint.stored import Encoding, StoredTensor
from moecli.errors import json_object
from moecli.formats import plain

if TYPE_CHECKING:
    from torch import Tensor

    from moecli.checkpoint.folder import Checkpoint

_FORMATS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_LARGEST_STATE = 4096
FOUR_BIT = "bitsandbytes 4-bit"


@dataclass(frozen=True, slots=True)
class FourBit(Encoding):
    """`parts` are codes, maxima, table, of double quantisation the maxima of these and their table, then the state."""

    width: int

    @property
    def name(self) -> str:
        return FOUR_BIT

    def rows(self, checkpoint: Checkpoint, first: int, count: int) -> Tensor:
        import torch

        codes, _, table, *_ = self.parts
        state = _State.of(self.parts, checkpoint.whole(self.parts[-1]))
        if state.columns != self.width or state.format != self.format:
            raise misfit(
                self.parts[-1], f"says {state.columns} columns in {state.format}, not {self.width} as the model"
            )
        start, end = first * self.width, (first + count) * self.width
        octets = raw.octets(checkpoint, codes, start // 2, -(-end // 2) - start // 2)
        indices = torch.stack((octets >> 4, octets & 15), 1).view(-1)[start % 2 :][: end - start]
        numbers = raw.finite(raw.whole(checkpoint, table), table)[indices.int()]
        low, block = start // state.block, state.block
        largest = self._maxima(checkpoint, state, low, -(-end // block) - low)
        if start % block or end % block:
            numbers *= largest[torch.arange(start, end) // block - low]
        else:
            numbers.view(-1, block).mul_(largest.unsqueeze(1))
        return numbers.view(count, -1).to(plain.torch_dtype(self.format))

    def _maxima(self, checkpoint: Checkpoint, state: _State, first: int, count: int) -> Tensor:
        import torch

        _, stored, _, *nested, _ = self.parts
        found = raw.rows(checkpoint, stored, first, count, 1).view(-1)
        if not nested:
            return raw.finite(found, stored)
        maxima, table = nested
        low = first // state.nested_block
        above = raw.rows(checkpoint, maxima, low, -(-(first + count) // state.nested_block) - low, 1).view(-1)
        place = torch.arange(first, first + count) // state.nested_block - low
        return raw.finite(raw.whole(checkpoint, table)[found.int()] * above[place] + state.offset, maxima)


@dataclass(frozen=True, slots=True)
class _State:
    """What a tensor of bytes says, in JSON, of the codes beside it."""

    rows: int
    columns: int
    format: str
    block: int
    nested_block: int
    offset: float

    @classmethod
    def of(cls, parts: tuple[StoredTensor, ...], text: bytes) -> _State:
        """CheckpointError where it does not fit the parts of a FourBit."""
        codes, maxima, *nested, state = parts
        said = json_object(text, lambda problem: misfit(state, problem))
        match said:
            case {"shape": [int(rows), int(columns)], "blocksize": int(block), "dtype": str(dtype)}:
                numbers = rows * columns
            case _:
                raise misfit(state, "does not say what the matrix is")
        if rows <= 0 or columns <= 0 or codes.size != -(-numbers // 2) or block <= 0 or dtype not in _FORMATS:
            raise misfit(codes, f"is not {[rows, columns]} in blocks of {block}, as is said beside it")
        if math.prod(maxima.shape) != -(-numbers // block):
            raise misfit(maxima, f"does not fit {codes.name} in blocks of {block}")
        nested_block, offset = 1, 0.0
        if maxima.dtype == "U8":
            match said:
                case {"nested_blocksize": int(nested_block), "nested_offset": float(offset)} if nested_block > 0:
                    pass
                case _:
                    raise misfit(state, "does not say how the maxima are quantised")
            above = nested[1]
            if not math.isfinite(offset) or math.prod(above.shape) != -(-math.prod(maxima.shape) // nested_block):
                raise misfit(above, f"does not fit {maxima.name} in blocks of {nested_block}")
        return cls(rows, columns, _FORMATS[dtype], block, nested_block, offset)


@dataclass(frozen=True, slots=True)
class Int8(Encoding):
    """`parts` are codes [out, in] and the maxima of their rows."""

    @property
    def name(self) -> str:
        return "bitsandbytes 8-bit"

    def rows(self, checkpoint: Checkpoint, first: int, count: int) -> Tensor:
        codes, maxima = self.parts
        largest = raw.finite(raw.rows(checkpoint, maxima, first, count, 1), maxima)
        numbers = raw.rows(checkpoint, codes, first, count).float()
        return (numbers * largest * _INVERSE).to(plain.torch_dtype(self.format))


_INVERSE = 7.874015718698502e-3  # 1 / 127, as bitsandbytes has it


def read_8bit(matrix: Matrix, scheme: Mapping[str, Any], format: str, read: Read | None) -> StoredTensor:
    """One matrix [out, in] of int8."""
    codes, maxima = matrix.codes, matrix.beside(r"\.SCB")
    if len(codes.shape) != 2 or codes.transposed or maxima.shape != codes.shape[:1] or maxima.dtype != "F32":
        raise misfit(maxima, f"does not fit {codes.name} of {list(codes.shape)}")
    return matrix.stored(codes.shape, Int8((codes, maxima), format))


def read_4bit(matrix: Matrix, scheme: Mapping[str, Any], format: str, read: Read | None) -> StoredTensor:
    """One matrix [out, in] of 4 bits, whose shape its file says in JSON: `read` reads that.

    Before the file is here, the shape is that of the model, and the precision `format`: when it is, both are compared.
    """
    state = matrix.beside(r"\.weight\.quant_state\..+")
    if state.size > _LARGEST_STATE:
        raise misfit(state, "is too large")
    codes, maxima, table = matrix.codes, matrix.beside(r"\.weight\.absmax"), matrix.beside(r"\.weight\.quant_map")
    parts = [codes, maxima, table]
    if table.shape != (16,) or table.dtype != "F32":
        raise misfit(table, f"in {table.dtype}, is no table of 16 numbers")
    if maxima.dtype == "U8":
        above, more = matrix.beside(r"\.weight\.nested_absmax"), matrix.beside(r"\.weight\.nested_quant_map")
        if above.dtype != "F32" or more.dtype != "F32" or more.shape != (256,):
            raise misfit(above, "is no second quantisation of the maxima")
        parts += [above, more]
    elif maxima.dtype != "F32":
        raise misfit(maxima, f"is {maxima.dtype}")
    parts.append(state)
    if read is not None:
        found = _State.of(tuple(parts), read(state))
        shape, format = (found.rows, found.columns), found.format
    elif matrix.inputs is None or 2 * codes.size % matrix.inputs:
        raise misfit(codes, "is no matrix of the model that config.json describes")
    else:
        shape = 2 * codes.size // matrix.inputs, matrix.inputs
    return matrix.stored(shape, FourBit(tuple(parts), format, shape[1]))
