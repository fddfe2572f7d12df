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
from moecli.errors import CheckpointError, json_object
from moecli.formats import plain

if TYPE_CHECKING:
    from torch import Tensor

    from moecli.checkpoint.folder import Checkpoint

_FORMATS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_LARGEST_STATE = 4096
FOUR_BIT = "bitsandbytes 4-bit"


@dataclass(frozen=True, slots=True)
class FourBit(Encoding):
    """`parts` are codes, maxima, table, and of double quantisation the maxima of these and their table."""

    width: int
    block: int
    nested_block: int
    offset: float

    @property
    def name(self) -> str:
        return FOUR_BIT

    def rows(self, checkpoint: Checkpoint, first: int, count: int) -> Tensor:
        import torch

        codes, _, table, *_ = self.parts
        start, end = first * self.width, (first + count) * self.width
        octets = raw.octets(checkpoint, codes, start // 2, -(-end // 2) - start // 2)
        indices = torch.stack((octets >> 4, octets & 15), 1).view(-1)[start % 2 :][: end - start]
        numbers = raw.finite(raw.whole(checkpoint, table), table)[indices.int()]
        low = start // self.block
        largest = self._maxima(checkpoint, low, -(-end // self.block) - low)
        if start % self.block or end % self.block:
            numbers *= largest[torch.arange(start, end) // self.block - low]
        else:
            numbers.view(-1, self.block).mul_(largest.unsqueeze(1))
        return numbers.view(count, -1).to(plain.torch_dtype(self.format))

    def _maxima(self, checkpoint: Checkpoint, first: int, count: int) -> Tensor:
        import torch

        _, stored, _, *nested = self.parts
        found = raw.rows(checkpoint, stored, first, count, 1).view(-1)
        if not nested:
            return raw.finite(found, stored)
        maxima, table = nested
        low = first // self.nested_block
        above = raw.rows(checkpoint, maxima, low, -(-(first + count) // self.nested_block) - low, 1).view(-1)
        place = torch.arange(first, first + count) // self.nested_block - low
        return raw.finite(raw.whole(checkpoint, table)[found.int()] * above[place] + self.offset, maxima)


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
    """One matrix [out, in] of 4 bits, whose shape its file says in JSON: `read` reads that."""
    state = matrix.beside(r"\.weight\.quant_state\..+")
    if read is None:
        raise CheckpointError(
            f"{FOUR_BIT} weights cannot be converted while they arrive", "moecli pull the model, then moecli pack it"
        )
    if state.size > _LARGEST_STATE:
        raise misfit(state, "is too large")
    said = json_object(read(state), lambda problem: misfit(state, problem))
    match said:
        case {"shape": [int(rows), int(columns)], "blocksize": int(block), "dtype": str(dtype)}:
            numbers = rows * columns
        case _:
            raise misfit(state, "does not say what the matrix is")
    codes, maxima, table = matrix.codes, matrix.beside(r"\.weight\.absmax"), matrix.beside(r"\.weight\.quant_map")
    if rows <= 0 or columns <= 0 or codes.size != -(-numbers // 2) or block <= 0 or dtype not in _FORMATS:
        raise misfit(codes, f"is not {[rows, columns]} in blocks of {block}, as is said beside it")
    if math.prod(maxima.shape) != -(-numbers // block) or table.shape != (16,) or table.dtype != "F32":
        raise misfit(maxima, f"does not fit {codes.name} in blocks of {block}")
    parts = [codes, maxima, table]
    nested_block, offset = 1, 0.0
    if maxima.dtype == "U8":
        above, more = matrix.beside(r"\.weight\.nested_absmax"), matrix.beside(r"\.weight\.nested_quant_map")
        match said:
            case {"nested_blocksize": int(nested_block), "nested_offset": float(offset)} if nested_block > 0:
                pass
            case _:
                raise misfit(state, "does not say how the maxima are quantised")
        if not math.isfinite(offset) or above.dtype != "F32" or more.dtype != "F32" or more.shape != (256,):
            raise misfit(above, "is no second quantisation of the maxima")
        if math.prod(above.shape) != -(-math.prod(maxima.shape) // nested_block):
            raise misfit(above, f"does not fit {maxima.name} in blocks of {nested_block}")
        parts += [above, more]
    elif maxima.dtype != "F32":
        raise misfit(maxima, f"is {maxima.dtype}")
    return matrix.stored((rows, columns), FourBit(tuple(parts), _FORMATS[dtype], columns, block, nested_block, offset))
