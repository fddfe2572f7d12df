"""compressed-tensors' pack-quantized: whole numbers of 4 bits, times the scale of a group of inputs of one output.

`weight_packed` [out, in / 8] has eight consecutive inputs in a word, shifted so that none is negative; `weight_scale`
[out, groups]; `weight_zero_point` [out / 8, groups], where there is one, has eight consecutive outputs in a word,
shifted alike; `weight_shape` repeats what config.json implies; `weight_g_idx` [in] says which group an input belongs
to, where they are not in order. Computed in the scales' precision, as compressed-tensors does.
"""

from __future__ import annotations

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

_EACH = 8  # numbers in a word


@dataclass(frozen=True, slots=True)
class PackQuantized(Encoding):
    """`parts` are codes, scales, and those of zero points and order that there are."""

    inputs: int
    zeros: bool
    order: bool

    @property
    def name(self) -> str:
        return "compressed-tensors 4-bit"

    def rows(self, checkpoint: Checkpoint, first: int, count: int) -> Tensor:
        import torch

        codes, scales, *more = self.parts
        zeros, order = self._beside(more)
        groups = scales.shape[1]
        words = raw.rows(checkpoint, codes, first, count)
        numbers = unpacked(words, 4)[:, : self.inputs].to(torch.int16) - 8
        beside = raw.rows(checkpoint, scales, first, count)
        raw.finite(beside, scales)
        dtype = plain.torch_dtype(self.format)
        if order is not None:
            group = raw.whole(checkpoint, order).long()
            if group.numel() and not (int(group.min()) >= 0 and int(group.max()) < groups):
                raise CheckpointError(f"{order.name} names a group that has no scale", "fetch the file again")
        else:
            group = torch.arange(self.inputs) // -(-self.inputs // groups)
        if zeros is not None:
            low, high = first // _EACH, -(-(first + count) // _EACH)
            points = unpacked(raw.rows(checkpoint, zeros, low, high - low).T, 4).T
            numbers = numbers - (points[first - low * _EACH :][:count].to(torch.int16) - 8)[:, group]
        return numbers.to(dtype) * beside.to(dtype)[:, group]

    def _beside(self, more: list[StoredTensor]) -> tuple[StoredTensor | None, StoredTensor | None]:
        """Zero points and order, of which there may be none."""
        found = iter(more)
        return next(found) if self.zeros else None, next(found) if self.order else None


def read(matrix: Matrix, scheme: Mapping[str, Any], format: str, read: Read | None) -> StoredTensor:
    """One matrix [out, in]. CheckpointError where its tensors do not belong together."""
    codes, scales = matrix.codes, matrix.beside(r"\.weight_scale")
    group = group_of(scheme, matrix.name)
    bits = group.get("num_bits", 4)
    if bits != 4 or group.get("type", "int") != "int":
        raise CheckpointError(
            f"{matrix.name} is packed as {group.get('type', 'int')} of {bits} bits, which is not read",
            "whole numbers of 4 bits are",
        )
    if len(codes.shape) != 2 or len(scales.shape) != 2 or codes.dtype != "I32" or codes.transposed:
        raise misfit(codes, f"and {scales.name} of {list(scales.shape)} are no matrices of codes and scales")
    (rows, words), (outputs, groups), size = codes.shape, scales.shape, group.get("group_size")
    inputs = words * _EACH
    zeros, order = matrix.maybe(".weight_zero_point"), matrix.maybe(".weight_g_idx")
    if type(size) is int and size > 0 and groups > 1:  # the last word may be filled up
        inputs = min(inputs, groups * size)
    fits = outputs == rows and groups and (order is not None or inputs % groups == 0) and words == -(-inputs // _EACH)
    if not fits or scales.dtype not in FLOAT_FORMATS:
        raise misfit(codes, f"does not fit scales of {list(scales.shape)} of 4 bits")
    if zeros is not None and (zeros.shape != (-(-rows // _EACH), groups) or zeros.dtype != "I32"):
        raise misfit(zeros, f"does not fit scales of {list(scales.shape)}")
    if order is not None and (order.shape != (inputs,) or order.dtype != "I32"):
        raise misfit(order, f"does not fit {inputs} inputs")
    if type(size) is int and size > 0 and groups != -(-inputs // size):
        raise misfit(scales, f"does not have a scale for every {size} of {inputs} inputs, as config.json says")
    parts = (codes, scales, *(part for part in (zeros, order) if part is not None))
    return matrix.stored(
        (rows, inputs), PackQuantized(parts, FLOAT_FORMATS[scales.dtype], inputs, bool(zeros), bool(order))
    )
