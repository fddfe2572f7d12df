"""AWQ: 4-bit whole numbers less a zero point, times a scale, both of a group of inputs of one output.

`qweight` [in, out / 8] and `qzeros` [groups, out / 8] have eight outputs in a word, in the order 0 2 4 6 1 3 5 7 from
the lowest bits on (version "gemm"); `scales` [groups, out]. Computed in the scales' precision, as AutoAWQ does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moecli.checkpoint import raw
from moecli.checkpoint.encodings._scheme import FLOAT_FORMATS, Matrix, Read, agree, misfit
from moecli.checkpoint.encodings._words import unpacked
from moecli.checkpoint.stored import Encoding, StoredTensor
from moecli.errors import CheckpointError, printable
from moecli.formats import plain

if TYPE_CHECKING:
    from torch import Tensor

    from moecli.checkpoint.folder import Checkpoint

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in its word each of eight outputs lies


@dataclass(frozen=True, slots=True)
class Awq(Encoding):
    """`parts` are qweight, qzeros and scales."""

    @property
    def name(self) -> str:
        return "awq"

    def rows(self, checkpoint: Checkpoint, first: int, count: int) -> Tensor:
        import torch

        codes, zeros, scales = self.parts
        inputs, groups = codes.shape[0], scales.shape[0]
        low, high = first // 8, -(-(first + count) // 8)

        def outputs(stored: StoredTensor) -> Tensor:
            words = raw.columns(checkpoint, stored, 0, stored.shape[0], low, high - low)
            dealt = unpacked(words, 4).view(len(words), -1, 8)[..., torch.tensor(_PLACES)]
            return dealt.reshape(len(words), -1)[:, first - low * 8 :][:, :count].to(torch.int8)

        beside = raw.columns(checkpoint, scales, 0, groups, first, count)
        raw.finite(beside, scales)
        dtype = plain.torch_dtype(self.format)
        differences = (outputs(codes).view(groups, -1, count) - outputs(zeros)[:, None]).to(dtype)
        return (differences * beside.to(dtype)[:, None]).view(inputs, count).T


def read(matrix: Matrix, scheme: Mapping[str, Any], format: str, read: Read | None) -> StoredTensor:
    """One matrix [out, in]. CheckpointError where its tensors do not belong together."""
    version = scheme.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise CheckpointError(
            f"AWQ weights of version '{printable(str(version), 40)}' are not read", "only version gemm is"
        )
    codes, zeros, scales = matrix.codes, matrix.beside(r"\.qzeros"), matrix.beside(r"\.scales")
    shapes = [each.shape for each in (codes, zeros, scales)]
    if any(len(shape) != 2 for shape in shapes) or codes.transposed:
        raise misfit(codes, "is no matrix of codes with matrices of scales and zero points")
    (inputs, words), points, found = shapes
    groups, outputs = found
    if not groups or inputs % groups or points != (groups, words) or outputs != 8 * words:
        raise misfit(codes, f"does not fit scales of {list(found)} and zero points of {list(points)}")
    if scales.dtype not in FLOAT_FORMATS or codes.dtype != "I32" or zeros.dtype != "I32":
        raise misfit(codes, f"and what is beside it are {codes.dtype}, {zeros.dtype} and {scales.dtype}")
    agree(scheme, matrix.name, bits=4, group_size=inputs // groups)
    return matrix.stored((outputs, inputs), Awq((codes, zeros, scales), FLOAT_FORMATS[scales.dtype]))
