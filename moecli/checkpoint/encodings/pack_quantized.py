"""compressed-tensors' pack-quantized: whole numbers of few bits, times the scale of a group of inputs of one output.

`weight_packed` [out, in * bits / 32] has consecutive inputs in a word, shifted so that none is negative; `weight_scale`
[out, groups], or one for the matrix; `weight_zero_point` [out * bits / 32, groups], where there is one, has consecutive
outputs in a word, shifted alike; `weight_shape` repeats what config.json implies; `weight_g_idx` [in] says which group
an input belongs to, where they are not in order. Computed in the scales' precision, as compressed-tensors does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moecli.checkpoint import raw
from moecli.checkpoint.encodings._scheme import FLOAT_FORMATS, Matrix, Read, group_of, misfit
from moecli.checkpoint.encodings._words import unpacked
from moecli.checkpoint.stored import Encoding, StoredTensor
from moecli.errors import CheckpointError
from moecli.formats import plain

if TYPE_CHECKING:
    from torch import Tensor

    from moecli.checkpoint.folder import Checkpoint

BITS = (2, 4, 8)


@dataclass(frozen=True, slots=True)
class PackQuantized(Encoding):
    """`parts` are codes, scales, and those of zero points and order that there are."""

    bits: int
    inputs: int
    zeros: bool
    order: bool

    @property
    def name(self) -> str:
        return f"compressed-tensors {self.bits}-bit"

    def rows(self, checkpoint: Checkpoint, first: int, count: int) -> Tensor:
        import torch

        codes, scales, *more = self.parts
        zeros, order = self._beside(more)
        each, middle = 32 // self.bits, 2 ** (self.bits - 1)
        groups = scales.shape[-1]
        words = raw.rows(checkpoint, codes, first, count)
        numbers = unpacked(words, self.bits)[:, : self.inputs].to(torch.int16) - middle
        of_all = math.prod(scales.shape) == 1
        beside = raw.whole(checkpoint, scales).view(1, 1) if of_all else raw.rows(checkpoint, scales, first, count)
        raw.finite(beside, scales)
        dtype = plain.torch_dtype(self.format)
        if order is not None:
            group = raw.whole(checkpoint, order).long()
            if group.numel() and not (int(group.min()) >= 0 and int(group.max()) < groups):
                raise CheckpointError(f"{order.name} names a group that has no scale", "fetch the file again")
        else:
            group = torch.arange(self.inputs) // -(-self.inputs // groups)
        if zeros is not None:
            low, high = first // each, -(-(first + count) // each)
            points = unpacked(raw.rows(checkpoint, zeros, low, high - low).T, self.bits).T
            numbers = numbers - (points[first - low * each :][:count].to(torch.int16) - middle)[:, group]
        found: Tensor = numbers.to(dtype) * beside.to(dtype)[:, group]
        return found

    def _beside(self, more: list[StoredTensor]) -> tuple[StoredTensor | None, StoredTensor | None]:
        """Zero points and order, of which there may be none."""
        found = iter(more)
        return next(found) if self.zeros else None, next(found) if self.order else None


def read(matrix: Matrix, scheme: Mapping[str, Any], format: str, read: Read | None) -> StoredTensor:
    """One matrix [out, in]. CheckpointError where its tensors do not belong together."""
    codes, scales = matrix.codes, matrix.beside(r"\.weight_scale")
    group = group_of(scheme, matrix.name)
    bits = group.get("num_bits", 4)
    if type(bits) is not int or bits not in BITS or group.get("type", "int") != "int":
        raise CheckpointError(
            f"{matrix.name} is packed as {group.get('type', 'int')} of {bits} bits, which is not read",
            "whole numbers of 2, 4 and 8 bits are",
        )
    one = math.prod(scales.shape) == 1 and group.get("strategy") == "tensor"
    if len(codes.shape) != 2 or codes.dtype != "I32" or codes.transposed or (len(scales.shape) != 2 and not one):
        raise misfit(codes, f"and {scales.name} of {list(scales.shape)} are no matrices of codes and scales")
    (rows, words), size, each = codes.shape, group.get("group_size"), 32 // bits
    outputs, groups = (rows, 1) if one else scales.shape
    inputs = words * each
    zeros, order = matrix.maybe(".weight_zero_point"), matrix.maybe(".weight_g_idx")
    if type(size) is int and size > 0 and groups > 1:  # the last word may be filled up
        inputs = min(inputs, groups * size)
    fits = outputs == rows and groups and (order is not None or inputs % groups == 0) and words == -(-inputs // each)
    if not fits or scales.dtype not in FLOAT_FORMATS:
        raise misfit(codes, f"does not fit scales of {list(scales.shape)} of {bits} bits")
    if zeros is not None and (zeros.shape != (-(-rows // each), groups) or zeros.dtype != "I32"):
        raise misfit(zeros, f"does not fit scales of {list(scales.shape)}")
    if order is not None and (order.shape != (inputs,) or order.dtype != "I32"):
        raise misfit(order, f"does not fit {inputs} inputs")
    if type(size) is int and size > 0 and groups != -(-inputs // size):
        raise misfit(scales, f"does not have a scale for every {size} of {inputs} inputs, as config.json says")
    parts = (codes, scales, *(part for part in (zeros, order) if part is not None))
    return matrix.stored(
        (rows, inputs), PackQuantized(parts, FLOAT_FORMATS[scales.dtype], bits, inputs, bool(zeros), bool(order))
    )
