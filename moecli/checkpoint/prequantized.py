"""Safetensors headers -> true parameters: what a packed or quantised tensor stands for, from names and shapes alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from moecli.checkpoint.encodings import mlx, scaled_int8
from moecli.checkpoint.encodings._scheme import group_of, mlx_module
from moecli.checkpoint.stored import StoredTensor
from moecli.errors import CheckpointError

Sidecars = Mapping[str, StoredTensor]  # by suffix
Scheme = Mapping[str, Any]  # the quantization_config


@dataclass(frozen=True, slots=True)
class Packing:
    """One way to store a matrix as a body and tensors beside it."""

    name: str
    body: str  # how the name of the tensor with the codes ends
    needed: tuple[str, ...]  # regular expressions of the endings that must stand beside it
    optional: tuple[str, ...]
    numbers: Callable[[StoredTensor, Sidecars, Scheme], int | None]  # None: it is not this packing after all
    restored: str = ""  # what takes the place of `body` in the name of the matrix


@dataclass(frozen=True, slots=True)
class TrueTensor:
    """One tensor of the model: `numbers` parameters in `stored_bytes`, everything beside the codes included."""

    name: str
    numbers: int
    stored_bytes: int
    format: str


def true_tensors(header: Mapping[str, StoredTensor], scheme: Scheme = MappingProxyType({})) -> list[TrueTensor]:
    """The tensors a checkpoint stands for; scales, zero points and lookup tables are folded into their matrix.

    `scheme` says what shapes do not: how many numbers share a scale in MLX (64 if nobody says it), how many bits they
    have in compressed-tensors (4).
    """
    packed = packed_matrices(header, scheme)
    taken = {part.name for matrix in packed for part in matrix.parts}
    plain = [_as_it_is(stored) for stored in header.values() if stored.name not in taken]
    return [_true(matrix) for matrix in packed] + plain


def _true(matrix: PackedMatrix) -> TrueTensor:
    size = sum(part.size for part in matrix.parts)
    return TrueTensor(matrix.name, matrix.numbers, size, matrix.packing.name)


def _as_it_is(stored: StoredTensor) -> TrueTensor:
    format_ = stored.encoding.name if stored.encoding else _PLAIN.get(stored.dtype, stored.dtype)
    return TrueTensor(stored.name, math.prod(stored.shape), sum(part.size for part in stored.parts), format_)


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A matrix of the model that is codes, with what stands beside them by the ending of its name."""

    name: str
    packing: Packing
    codes: StoredTensor
    beside: Sidecars
    numbers: int

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        return self.codes, *self.beside.values()


def packed_matrices(
    header: Mapping[str, StoredTensor], scheme: Scheme = MappingProxyType({})
) -> list[PackedMatrix]:  # fmt: skip
    """The matrices that are codes with something beside them; `scheme` is that of `true_tensors`."""
    packings = (*_MLX, *PACKINGS) if _holds_words(header) else PACKINGS
    siblings = _siblings(header)
    found: list[PackedMatrix] = []
    for stored in header.values():
        if stored.encoding is not None:
            continue
        fitting = (_unpack(stored, each, siblings, scheme) for each in packings if stored.name.endswith(each.body))
        if (matrix := next(filter(None, fitting), None)) is not None:
            found.append(matrix)
    return found


def main_format(tensors: Iterable[TrueTensor]) -> str:
    """The format most of the parameters are in: "bf16", "mxfp4", "bitsandbytes 4-bit"."""
    numbers: Counter[str] = Counter()
    for tensor in tensors:
        numbers[tensor.format] += tensor.numbers
    return max(numbers, key=numbers.__getitem__, default="empty")


def quantised_among(tensors: Iterable[TrueTensor]) -> str | None:
    """The format of most parameters that are not plain numbers; None where all are."""
    coded = [each for each in tensors if each.format not in _PLAIN_FORMATS and each.numbers > 1]
    return main_format(coded) if coded else None


_Siblings = Mapping[str, Mapping[str, StoredTensor]]
# Where a name may be cut in two: a module and what it holds. Formats that append to the parameter's own name cut twice.
_ENDINGS = re.compile(
    r"(?P<stem>.+?)(?P<ending>"
    r"\.weight(?:\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+)|_\w+)?"
    r"|\.(?:SCB|qweight|qzeros|blocks|scales|biases|g_idx|scale|input_scale|output_scale|input_global_scale)|_(?:blocks|scales|scale|scale_inv))"
)


def _siblings(header: Mapping[str, StoredTensor]) -> _Siblings:
    found: dict[str, dict[str, StoredTensor]] = {}
    for stored in header.values():
        if match := _ENDINGS.fullmatch(stored.name):
            found.setdefault(match["stem"], {})[match["ending"]] = stored
    return found


def _unpack(stored: StoredTensor, packing: Packing, siblings: _Siblings, scheme: Scheme) -> PackedMatrix | None:
    stem = stored.name.removesuffix(packing.body)
    near = siblings.get(stem, {})
    beside: dict[str, StoredTensor] = {}
    for pattern in packing.needed:
        endings = [ending for ending in near if re.fullmatch(pattern, ending)]
        if not endings:
            return None
        beside |= {ending: near[ending] for ending in endings}
    for pattern in packing.optional:
        beside |= {ending: tensor for ending, tensor in near.items() if re.fullmatch(pattern, ending)}
    numbers = packing.numbers(stored, beside, scheme)
    if numbers is None:
        return None
    return PackedMatrix(stem + packing.restored, packing, stored, beside, numbers)


def _two_a_byte(stored: StoredTensor, *_: object) -> int | None:
    return 2 * stored.size if stored.dtype == "U8" else None


def _two_a_stored_byte(stored: StoredTensor, *_: object) -> int:
    """bitsandbytes may keep its bytes in a tensor of any dtype; the size is what counts."""
    return 2 * stored.size


def _one_each(*dtypes: str) -> Callable[..., int | None]:
    return lambda stored, *_: math.prod(stored.shape) if stored.dtype in dtypes else None


def _as_scaled(stored: StoredTensor, beside: Sidecars, *_: object) -> int:
    """GPTQ and AWQ: zero points are packed as the codes are, scales are not, so their ratio tells the bits."""
    scales, zeros = beside[r".scales"].shape, beside[r".qzeros"].shape
    if not scales or not zeros or not zeros[-1]:
        raise CheckpointError(f"'{stored.name[:80]}' has scales and zero points of no use")
    numbers = math.prod(stored.shape) * Fraction(scales[-1], zeros[-1])
    if numbers.denominator != 1:
        raise CheckpointError(f"'{stored.name[:80]}' does not agree with its scales and zero points")
    return int(numbers)


def _gptq(stored: StoredTensor, beside: Sidecars, *_: object) -> int | None:
    """Packed along the input: its columns are those of its scales."""
    same = bool(stored.shape) and stored.shape[-1:] == beside[".scales"].shape[-1:]
    return _as_scaled(stored, beside) if same else None


def _holds_words(header: Mapping[str, StoredTensor]) -> bool:
    return any(stored.dtype == "U32" for stored in header.values())


def _mlx(bits: int) -> Callable[[StoredTensor, Sidecars, Scheme], int | None]:
    """Numbers of so many bits without gaps in words of 32: shapes and the size of a group imply how many."""

    def count(stored: StoredTensor, beside: Sidecars, scheme: Scheme) -> int | None:
        group = mlx_module(scheme, stored.name).get("group_size")
        group = group if type(group) is int and 0 < group < 2**16 else 64
        found = math.prod(beside[".scales"].shape) * group
        return found if stored.dtype == "U32" and 8 * stored.size == bits * found else None

    return count


def _mlx_floats(bits: int, group: int) -> Callable[[StoredTensor, Sidecars, Scheme], int | None]:
    """Floats of so many bits, so many to a byte that is their scale."""

    def count(stored: StoredTensor, beside: Sidecars, _: Scheme) -> int | None:
        scales = beside[".scales"]
        fits = (stored.dtype, scales.dtype) == ("U32", "U8") and 8 * stored.size == bits * group * scales.size
        return 8 * stored.size // bits if fits and ".biases" not in beside else None

    return count


def _words(bits: int) -> Callable[[StoredTensor, Sidecars, Scheme], int | None]:
    """Whole numbers in words, of so many bits if that is said of their module."""

    def count(stored: StoredTensor, _: Sidecars, scheme: Scheme) -> int | None:
        said = group_of(scheme, stored.name.removesuffix("_packed")).get("num_bits", 4)
        return math.prod(stored.shape) * 32 // bits if stored.dtype == "I32" and said == bits else None

    return count


_PLAIN = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8", "F8_E5M2": "fp8"}
# Not codes of weights: numbers as they are, and integers, which are tables.
_PLAIN_FORMATS = frozenset(
    {scaled_int8.NAME, "fp64", "fp32", "fp16", "bf16", "I64", "I32", "I16", "BOOL", "U64", "U16"}
)
_FLOAT8 = ("F8_E4M3", "F8_E5M2")
_SCALES = (r"\.weight_scale(?:_\w+)?", r"\.input_scale", r"\.output_scale")

PACKINGS = (
    Packing(
        "bitsandbytes 4-bit", ".weight", (r"\.weight\.absmax", r"\.weight\.quant_state\.\w+"),
        (r"\.weight\.quant_map", r"\.weight\.nested_\w+"), _two_a_stored_byte, ".weight",
    ),
    Packing("bitsandbytes 8-bit", ".weight", (r"\.SCB",), (r"\.weight_format",), _one_each("I8"), ".weight"),
    Packing("gptq", ".qweight", (r"\.qzeros", r"\.scales"), (r"\.g_idx",), _gptq, ".weight"),
    Packing("awq", ".qweight", (r"\.qzeros", r"\.scales"), (), _as_scaled, ".weight"),
    Packing("mxfp4", "_blocks", (r"_scales",), (), _two_a_byte),
    Packing("mxfp4", ".blocks", (r"\.scales",), (), _two_a_byte),  # OpenAI's own names
    Packing("fp8", ".weight", (r"\.weight_scale(?:_inv)?|\.scale",), _SCALES, _one_each(*_FLOAT8), ".weight"),
    Packing("fp8", "", (r"_scale(?:_inv)?",), (), _one_each(*_FLOAT8)),  # experts in one tensor
    Packing(
        "compressed-tensors fp4", ".weight_packed", (r"\.weight_scale",),
        (*_SCALES, r"\.weight_global_scale", r"\.input_global_scale"), _two_a_byte, ".weight",
    ),
    Packing("ModelOpt nvfp4", ".weight", (r"\.weight_scale", r"\.weight_scale_2"), _SCALES, _two_a_byte, ".weight"),
    Packing("fp4", ".weight", (r"\.weight_scale",), _SCALES, _two_a_byte, ".weight"),
    Packing("int8", ".weight", (r"\.weight_scale",), _SCALES, _one_each("I8"), ".weight"),
    *(
        Packing(
            f"compressed-tensors {bits}-bit", ".weight_packed", (r"\.weight_scale",),
            (*_SCALES, r"\.weight_shape", r"\.weight_zero_point", r"\.weight_g_idx"), _words(bits), ".weight",
        )
        for bits in range(1, 9)
    ),
)  # fmt: skip
_MLX = (
    Packing("MLX mxfp4", ".weight", (r"\.scales",), (r"\.biases",), _mlx_floats(4, 32), ".weight"),
    Packing("MLX mxfp8", ".weight", (r"\.scales",), (r"\.biases",), _mlx_floats(8, 32), ".weight"),
    Packing("MLX nvfp4", ".weight", (r"\.scales",), (r"\.biases",), _mlx_floats(4, 16), ".weight"),
    *(
        Packing(f"MLX {bits}-bit", ".weight", (r"\.scales",), (r"\.biases",), _mlx(bits), ".weight")
        for bits in mlx.BITS
    ),
)  # fmt: skip
