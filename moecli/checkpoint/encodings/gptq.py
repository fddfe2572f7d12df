"""GPTQ: whole numbers less a zero point, times a scale, both of a group of inputs of one output.

`qweight` [in / n, out] has n numbers of consecutive inputs in a word, `qzeros` [groups, out / n] those of consecutive
outputs; `scales` [groups, out]; `g_idx` [in] says which group an input belongs to, where they are not in order. The
older version stores a zero point less 1 (`checkpoint_format` "gptq"), "gptq_v2" as it is. Computed in the scales'
precision, as AutoGPTQ and GPTQModel do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moecli.checkpoint import raw
from moecli.checkpoint.encodings._scheme import FLOAT_FORMATS, Matrix, Read, agree, misfit
from moecli.checkpoint.encodings._words import unpacked
from moecli.checkpoint.stored import Encoding, StoredTensor
from moecli.errors import CheckpointError
from moecli.formats import plain

if TYPE_CHECKING:
    from torch import Tensor

    from moecli.checkpoint.folder import Checkpoint


@dataclass(frozen=True, slots=True)
class Gptq(Encoding):
    """`parts` are qweight, qzeros, scales and, unless groups are in order, g_idx."""

    bits: int
    less: int  # by what stored zero points are too small

    @property
    def name(self) -> str:
        return "gptq"

    def rows(self, checkpoint: Checkpoint, first: int, count: int) -> Tensor:
        import torch

        codes, zeros, scales, *order = self.parts
        groups, inputs = scales.shape[0], codes.shape[0] * 32 // self.bits
        words = raw.columns(checkpoint, codes, 0, codes.shape[0], first, count)
        numbers = unpacked(words.T, self.bits).to(torch.int16)  # [count, in]
        beside = raw.columns(checkpoint, scales, 0, groups, first, count)
        raw.finite(beside, scales)
        each = 32 // self.bits
        low, high = first // each, -(-(first + count) // each)
        points = unpacked(raw.columns(checkpoint, zeros, 0, groups, low, high - low), self.bits)
        points = points[:, first - low * each :][:, :count].to(torch.int16) + self.less
        if order:
            group = self._order(raw.whole(checkpoint, order[0]), order[0], groups)
        else:
            group = torch.arange(inputs) // (inputs // groups)
        dtype = plain.torch_dtype(self.format)
        differences = (numbers - points.T[:, group]).to(dtype)
        return differences * beside.T.to(dtype)[:, group]

    @staticmethod
    def _order(found: Tensor, stored: StoredTensor, groups: int) -> Tensor:
        if found.numel() and not (int(found.min()) >= 0 and int(found.max()) < groups):
            raise CheckpointError(f"{stored.name} names a group that has no scale", "fetch the file again")
        return found.long()


def read(matrix: Matrix, scheme: Mapping[str, Any], format: str, read: Read | None) -> StoredTensor:
    """One matrix [out, in]. CheckpointError where its tensors do not belong together."""
    codes, zeros, scales = matrix.codes, matrix.beside(r"\.qzeros"), matrix.beside(r"\.scales")
    order = matrix.maybe(".g_idx")
    shapes = [each.shape for each in (codes, zeros, scales)]
    if any(len(shape) != 2 for shape in shapes) or codes.transposed:
        raise misfit(codes, "is no matrix of codes with matrices of scales and zero points")
    (tall, outputs), (groups, words), found = shapes
    bits = 32 * words // outputs if outputs else 0
    if bits not in (2, 4, 8) or bits * outputs != 32 * words or found != (groups, outputs):
        raise misfit(zeros, f"does not fit scales of {list(found)} with 2, 4 or 8 bits a number")
    inputs = tall * 32 // bits
    if not groups or (order is None and inputs % groups) or (order is not None and order.shape != (inputs,)):
        raise misfit(codes, f"holds {inputs} inputs, which do not fit {groups} groups")
    if scales.dtype not in FLOAT_FORMATS or any(each.dtype != "I32" for each in (codes, zeros, *filter(None, [order]))):
        raise misfit(codes, f"and what is beside it are {codes.dtype}, {zeros.dtype} and {scales.dtype}")
    agree(scheme, matrix.name, bits=bits, group_size=inputs // groups if inputs % groups == 0 else None)
    less = 0 if scheme.get("checkpoint_format") == "gptq_v2" else 1
    parts = (codes, zeros, scales) if order is None else (codes, zeros, scales, order)
    return matrix.stored((outputs, inputs), Gptq(parts, FLOAT_FORMATS[scales.dtype], bits, less))
