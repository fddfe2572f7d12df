"""mxfp4 and nvfp4: 4-bit floats (e2m1), two to a byte, the first in the low bits, times the scale of their group.

mxfp4 (OCP Microscaling, 2023) has an exponent for 32 numbers of an output, plus 127 (e8m0): gpt-oss's `_blocks` [E,
out, groups, 16] or [E, out, in / 2] with `_scales` [E, out, groups], whose matrices transformers takes as [E, in, out];
compressed-tensors' `weight_packed` [out, in / 2] with `weight_scale`. nvfp4 has an e4m3 number for 16 and one float32
for the matrix: by `weight_scale_2` ModelOpt multiplies, by `weight_global_scale` compressed-tensors divides. The scale
is computed in float32, and the product rounded once, to bf16, as by transformers, ModelOpt and compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from moecli.checkpoint import raw
from moecli.checkpoint.encodings._scheme import Matrix, Read, misfit
from moecli.checkpoint.stored import Encoding, StoredTensor
from moecli.errors import CheckpointError
from moecli.formats import plain

if TYPE_CHECKING:
    from torch import Tensor

    from moecli.checkpoint.folder import Checkpoint
    from moecli.formats.published import Blocks

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_LARGEST_EXPONENT = 252  # times 6 it is still a number in bf16


class Whole(Enum):
    """What a number for the whole matrix does to the scales of groups."""

    NONE = "is not there"
    MULTIPLIES = "multiplies"
    DIVIDES = "divides"


@dataclass(frozen=True, slots=True)
class Float4(Encoding):
    """`parts` are codes, scales of groups of so many `inputs`, and a number for the `whole` matrix if there is one.

    `outputs` of one matrix; `turned`: of a stack [E, in, out], whose codes lie as [E, out, in].
    """

    group: int
    inputs: int
    outputs: int
    whole: Whole = Whole.NONE
    turned: bool = False

    @property
    def name(self) -> str:
        return "mxfp4" if self.group == 32 else "nvfp4"

    def rows(self, checkpoint: Checkpoint, first: int, count: int) -> Tensor:
        import torch

        if not self.turned:
            return self._numbers(checkpoint, first, count)
        parts = []
        for top in range(first // self.inputs * self.inputs, first + count, self.inputs):
            low, high = max(first, top), min(first + count, top + self.inputs)
            parts.append(self.columns(checkpoint, low, high - low, 0, self.outputs))
        return torch.cat(parts) if parts else torch.empty(0, self.outputs, dtype=plain.torch_dtype(self.format))

    def columns(self, checkpoint: Checkpoint, top: int, height: int, first: int, count: int) -> Tensor:
        """Of one matrix where it is turned."""
        if not self.turned:
            return self._numbers(checkpoint, top, height)[:, first : first + count]
        matrix, input_ = divmod(top, self.inputs)
        numbers = self._numbers(checkpoint, matrix * self.outputs + first, count)
        return numbers[:, input_ : input_ + height].T

    def row_blocks(self, checkpoint: Checkpoint, first: int, count: int) -> Blocks | None:
        return None if self.turned else self._blocks(checkpoint, first, count)

    def column_blocks(self, checkpoint: Checkpoint, top: int, first: int, count: int) -> Blocks | None:
        return self._blocks(checkpoint, top // self.inputs * self.outputs + first, count) if self.turned else None

    def _blocks(self, checkpoint: Checkpoint, first: int, count: int) -> Blocks | None:
        from moecli.formats.published import Blocks

        if self.name != "mxfp4":
            return None
        indices, scales = self._octets(checkpoint, first, count)
        return Blocks("mxfp4", indices.view(count, -1, 16), scales.view(count, -1, 1), paired=True)

    def _numbers(self, checkpoint: Checkpoint, first: int, count: int) -> Tensor:
        """Outputs as they lie: [count, in]."""
        import torch

        octets, beside = self._octets(checkpoint, first, count)
        signed = torch.tensor([*_MAGNITUDES, *(-each for each in _MAGNITUDES)])
        pairs = torch.stack((signed.repeat(16), signed.repeat_interleave(16)), 1)  # by byte: low bits, high bits
        numbers = pairs[octets.int()].view(count, -1, self.group)
        numbers *= self._factors(checkpoint, beside)[..., None]
        return numbers.view(count, -1).to(plain.torch_dtype(self.format))

    def _octets(self, checkpoint: Checkpoint, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Codes of outputs, two to a byte, and what their scales are stored as, [count, groups]."""
        codes, scales, *_ = self.parts
        width = self.inputs // 2
        octets = raw.octets(checkpoint, codes, first * width, count * width)
        return octets, raw.rows(checkpoint, scales, first, count, self.inputs // self.group)

    def _factors(self, checkpoint: Checkpoint, beside: Tensor) -> Tensor:
        """What numbers are multiplied by, from the scales of their groups: in float32."""
        import torch

        scales = self.parts[1]
        if self.group == 32:
            if beside.numel() and int(beside.max()) > _LARGEST_EXPONENT:
                raise CheckpointError(
                    f"{scales.name} holds a scale that is infinite or no number", "fetch the file again"
                )
            return torch.ldexp(torch.ones(beside.shape), beside.int() - 127)
        found = raw.finite(beside.view(torch.float8_e4m3fn), scales)
        if self.whole is Whole.NONE:
            return found
        number = raw.finite(raw.whole(checkpoint, self.parts[2]), self.parts[2]).view(())
        if not float(number) > 0:
            raise CheckpointError(f"{self.parts[2].name} is {float(number):g}: no scale", "fetch the file again")
        return found * number if self.whole is Whole.MULTIPLIES else found / number


def read_blocks(matrix: Matrix, scheme: Mapping[str, Any], format: str, read: Read | None) -> StoredTensor:
    """gpt-oss's mxfp4: a stack of experts, which stands for [E, in, out]."""
    codes, scales = matrix.codes, matrix.beside(r"[._]scales")
    *stack, outputs, groups = scales.shape or (0, 0)
    fits = codes.shape in ((*stack, outputs, groups, 16), (*stack, outputs, 16 * groups))
    if len(stack) != 1 or not fits or (codes.dtype, scales.dtype) != ("U8", "U8"):
        raise misfit(codes, f"does not fit exponents of {list(scales.shape)} in {scales.dtype}, one for 32 numbers")
    encoding = Float4((codes, scales), "bf16", 32, 32 * groups, outputs, turned=True)
    return matrix.stored((*stack, 32 * groups, outputs), encoding)


def read_modelopt(matrix: Matrix, scheme: Mapping[str, Any], format: str, read: Read | None) -> StoredTensor:
    """One matrix of ModelOpt's nvfp4."""
    return _read(matrix, matrix.beside(r"\.weight_scale"), matrix.beside(r"\.weight_scale_2"), Whole.MULTIPLIES)


def read_packed(matrix: Matrix, scheme: Mapping[str, Any], format: str, read: Read | None) -> StoredTensor:
    """One matrix of compressed-tensors' nvfp4-pack-quantized or mxfp4-pack-quantized."""
    whole = matrix.maybe(".weight_global_scale")
    return _read(matrix, matrix.beside(r"\.weight_scale"), whole, Whole.DIVIDES)


def _read(matrix: Matrix, scales: StoredTensor, whole: StoredTensor | None, does: Whole) -> StoredTensor:
    codes, found = matrix.codes, scales.shape
    group = 16 if whole else 32
    if len(codes.shape) != 2 or codes.transposed or codes.dtype != "U8":
        raise misfit(codes, f"in {codes.dtype}, is no matrix of two numbers to a byte")
    outputs, inputs = codes.shape[0], 2 * codes.shape[1]
    if inputs % group or found != (outputs, inputs // group) or scales.dtype != ("F8_E4M3" if whole else "U8"):
        raise misfit(scales, f"in {scales.dtype}, does not fit {codes.name} of {list(codes.shape)}, {group} to a scale")
    if whole and (whole.shape not in ((), (1,)) or whole.dtype != "F32"):
        raise misfit(whole, f"in {whole.dtype}, is not one number for a matrix")
    parts = (codes, scales, whole) if whole else (codes, scales)
    return matrix.stored(
        (outputs, inputs), Float4(parts, "bf16", group, inputs, outputs, does if whole else Whole.NONE)
    )
