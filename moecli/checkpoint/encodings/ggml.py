"""The types of ggml, in which GGUF files hold their tensors: blocks of 32 or 256 numbers of a row, with their scales.

Layouts: ggml-common.h and ggml-quants.c of llama.cpp. Numbers are those of its float32 arithmetic, operation by
operation. Types of tables with thousands of entries are decoded by llama.cpp's own package, `gguf`, which has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from moecli.checkpoint import raw
from moecli.checkpoint.stored import Encoding
from moecli.errors import CheckpointError
from moecli.formats import GROUPED

if TYPE_CHECKING:
    from torch import Tensor

    from moecli.checkpoint.folder import Checkpoint
    from moecli.formats.published import Blocks

FLOATS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # e2m1, doubled


class Change(Enum):
    """What a converter computed of each number of a model."""

    PLUS_ONE = "plus one"
    MINUS_EXP = "minus its exponential"


@dataclass(frozen=True, slots=True)
class Pairs:
    """The order of llama.cpp's rotary embedding: side by side what stands half a head of `width` apart in the model."""

    width: int

    def places(self, model: Tensor) -> Tensor:
        """Where those that have these places in the model lie."""
        inside = model % self.width
        return model - inside + 2 * (inside % (self.width // 2)) + inside // (self.width // 2)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Heads of `height`, after some that are `skipped`: the first of each group, the second of each ... `times`.

    In the model all of a group lie together.
    """

    skipped: int
    groups: int
    times: int
    height: int

    def places(self, model: Tensor) -> Tensor:
        """Where those that have these places in the model lie."""
        behind = model - self.skipped
        head, inside = behind // self.height, behind % self.height
        tiled = (head % self.times * self.groups + head // self.times) * self.height + inside
        return model.where(behind < 0, tiled + self.skipped)


@dataclass(frozen=True, slots=True)
class Ggml(Encoding):
    """`parts` is one run of bytes [rows, bytes of a row]; `kind` is a name in TYPES.

    `order`: how its rows lie, `columns_order`: what is in each, where these are others than in the model; `change`:
    what each number was before.
    """

    kind: str
    order: Pairs | Tiles | None = None
    columns_order: Tiles | None = None
    change: Change | None = None

    @property
    def name(self) -> str:
        return FLOATS.get(self.kind, self.kind)

    def rows(self, checkpoint: Checkpoint, first: int, count: int) -> Tensor:
        import torch

        (codes,) = self.parts
        if self.order is None:
            found = self._decoded(raw.rows(checkpoint, codes, first, count))
        else:
            places = self.order.places(torch.arange(first, first + count))
            low, high = int(places.min()), int(places.max()) + 1
            found = self._decoded(raw.rows(checkpoint, codes, low, high - low)[places - low])
        if self.columns_order is None:
            return found
        return found[:, self.columns_order.places(torch.arange(found.shape[1]))]

    def row_blocks(self, checkpoint: Checkpoint, first: int, count: int) -> Blocks | None:
        from moecli.formats.published import Blocks

        kind, dtype = TYPES[self.kind], self.kind.lower()
        if self.order or self.columns_order or self.change or dtype not in GROUPED:
            return None
        groups = raw.rows(checkpoint, self.parts[0], first, count).view(count, -1, kind.size)
        return Blocks(dtype, groups[..., kind.size - 16 :], groups[..., : kind.size - 16], paired=False)

    def _decoded(self, found: Tensor) -> Tensor:
        kind = TYPES[self.kind]
        numbers = kind.decode(found.view(-1, kind.size)).view(len(found), -1)
        if self.change is Change.PLUS_ONE:
            numbers = numbers.float() - 1
        elif self.change is Change.MINUS_EXP:
            numbers = (-numbers.float()).log()
        if not bool(numbers.isfinite().all()):
            raise CheckpointError(f"{self.parts[0].name} holds a scale that is infinite or no number", "fetch it again")
        return numbers


@dataclass(frozen=True, slots=True)
class KeysAndValues(Encoding):
    """DeepSeek's kv_b, which newer files hold in two: keys [heads, rank, nope] and values [heads, value, rank].

    `parts` are the bytes of both; `keys` and `values` say how they are read.
    """

    keys: tuple[str, int]  # type of the blocks, and rows of a head
    values: tuple[str, int]

    @property
    def name(self) -> str:
        return FLOATS.get(self.values[0], self.values[0])

    def rows(self, checkpoint: Checkpoint, first: int, count: int) -> Tensor:
        import torch

        (key_kind, rank), (value_kind, height) = self.keys, self.values
        keys, values = self.parts
        key = Ggml((keys,), "fp32", key_kind).rows(checkpoint, 0, keys.shape[0]).float()
        value = Ggml((values,), "fp32", value_kind).rows(checkpoint, 0, values.shape[0]).float()
        heads = len(key) // rank
        key, value = key.view(heads, rank, -1), value.view(heads, height, rank)
        return torch.cat([key.transpose(1, 2), value], 1).reshape(-1, rank)[first : first + count]


@dataclass(frozen=True, slots=True)
class Type:
    """One type: how many numbers are in a block, its bytes, and uint8 [n, size] -> numbers [n, block]."""

    block: int
    size: int
    decode: Callable[[Tensor], Tensor]
    format: str = "fp32"  # that it decodes to

    def row_bytes(self, numbers: int) -> int | None:
        """Bytes of so many numbers; None where they are no whole blocks."""
        return None if numbers % self.block else numbers // self.block * self.size


def _plain(name: str) -> Callable[[Tensor], Tensor]:
    def decode(blocks: Tensor) -> Tensor:
        import torch

        return blocks.view(getattr(torch, name))

    return decode


def _half(blocks: Tensor, at: int) -> Tensor:
    """The 16-bit float at a byte of each block: [n, 1]."""
    import torch

    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _fields(octets: Tensor, bits: int, run: int) -> Tensor:
    """Numbers of a few bits [n, m] from bytes: the lowest bits of a run of bytes, then the next of the same run."""
    import torch

    places = torch.arange(0, 8, bits, dtype=torch.uint8).view(-1, 1)
    found: Tensor = octets.reshape(len(octets), -1, 1, run) >> places & 2**bits - 1
    return found.view(len(octets), -1)


def _looked_up(table: tuple[int, ...], codes: Tensor) -> Tensor:
    import torch

    return torch.tensor(table, dtype=torch.float32)[codes.int()]


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_fields(blocks[:, 2:], 4, 16).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _fields(blocks[:, 4:], 4, 16).float() + _half(blocks, 2)


def _fifth(octets: Tensor) -> Tensor:
    """The highest bit of 32 numbers, from 4 bytes."""
    return _fields(octets, 1, 1)


def _q5_0(blocks: Tensor) -> Tensor:
    codes = _fields(blocks[:, 6:], 4, 16) | _fifth(blocks[:, 2:6]) << 4
    return _half(blocks, 0) * (codes.float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    codes = _fields(blocks[:, 8:], 4, 16) | _fifth(blocks[:, 4:8]) << 4
    return _half(blocks, 0) * codes.float() + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    import torch

    return blocks[:, 2:].view(torch.int8).float() * _half(blocks, 0)


def _q2_k(blocks: Tensor) -> Tensor:
    scales = _half(blocks, 80) * (blocks[:, :16] & 15).float()
    least = _half(blocks, 82) * (blocks[:, :16] >> 4).float()
    codes = _fields(blocks[:, 16:80], 2, 32).view(-1, 16, 16).float()
    return (scales.unsqueeze(2) * codes - least.unsqueeze(2)).view(-1, 256)


def _q3_k(blocks: Tensor) -> Tensor:
    low = _fields(blocks[:, 96:104], 4, 8)
    high = _fields(blocks[:, 104:108], 2, 4)
    scales = _half(blocks, 108) * ((low | high << 4).float() - 32)
    codes = _fields(blocks[:, 32:96], 2, 32).float() - 4 * (1 - _fields(blocks[:, :32], 1, 32).float())
    return (scales.unsqueeze(2) * codes.view(-1, 16, 16)).view(-1, 256)


def _scales_and_least(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Those of each 32 numbers, of Q4_K and Q5_K: [n, 8, 1] each. Eight of 6 bits each lie in 12 bytes."""
    import torch

    one, other, rest = blocks[:, 4:16].split(4, 1)
    scales = torch.cat([one & 63, rest & 15 | one >> 2 & 48], 1).float()
    least = torch.cat([other & 63, rest >> 4 | other >> 2 & 48], 1).float()
    return (_half(blocks, 0) * scales).unsqueeze(2), (_half(blocks, 2) * least).unsqueeze(2)


def _q4_k(blocks: Tensor) -> Tensor:
    scales, least = _scales_and_least(blocks)
    return (scales * _fields(blocks[:, 16:], 4, 32).view(-1, 8, 32).float() - least).view(-1, 256)


def _q5_k(blocks: Tensor) -> Tensor:
    scales, least = _scales_and_least(blocks)
    codes = _fields(blocks[:, 48:], 4, 32) | _fields(blocks[:, 16:48], 1, 32) << 4
    return (scales * codes.view(-1, 8, 32).float() - least).view(-1, 256)


def _q6_k(blocks: Tensor) -> Tensor:
    import torch

    codes = _fields(blocks[:, :128], 4, 64) | _fields(blocks[:, 128:192], 2, 32) << 4
    scales = _half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8).float()
    return (scales.unsqueeze(2) * (codes.view(-1, 16, 16).float() - 32)).view(-1, 256)


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _looked_up(_IQ4, _fields(blocks[:, 2:], 4, 16))


def _iq4_xs(blocks: Tensor) -> Tensor:
    low = _fields(blocks[:, 4:8], 4, 1)
    high = _fields(blocks[:, 2:4], 2, 1)
    scales = _half(blocks, 0) * ((low | high << 4).float() - 32)
    codes = _looked_up(_IQ4, _fields(blocks[:, 8:], 4, 16))
    return (scales.unsqueeze(2) * codes.view(-1, 8, 32)).view(-1, 256)


def _mxfp4(blocks: Tensor) -> Tensor:
    """The exponent is that of half the scale, because the table is doubled."""
    import torch

    scales = torch.ldexp(torch.ones(len(blocks), 1), blocks[:, :1].int() - 128)
    return scales * _looked_up(_FP4, _fields(blocks[:, 1:], 4, 16))


def _q1_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (2 * _fields(blocks[:, 2:], 1, 1).float() - 1)


def _q2_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_fields(blocks[:, 2:], 2, 1).float() - 1)


def _by_package(name: str) -> Callable[[Tensor], Tensor]:
    """By `gguf`, which takes half a second to import: only where a file holds such a type."""

    def decode(blocks: Tensor) -> Tensor:
        import numpy as np
        import torch
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        with np.errstate(all="ignore"):  # whoever asked looks for numbers that are none
            return torch.from_numpy(dequantize(blocks.numpy(), GGMLQuantizationType[name]))

    return decode


_PACKAGE = {  # numbers in a block, and its bytes
    "IQ1_S": (256, 50), "IQ1_M": (256, 56), "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74), "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98), "IQ3_S": (256, 110), "TQ1_0": (256, 54), "TQ2_0": (256, 66), "NVFP4": (64, 36),
}  # fmt: skip

TYPES: Mapping[str, Type] = {
    "F32": Type(1, 4, _plain("float32")),
    "F16": Type(1, 2, _plain("float16"), FLOATS["F16"]),
    "BF16": Type(1, 2, _plain("bfloat16"), FLOATS["BF16"]),
    "Q4_0": Type(32, 18, _q4_0),
    "Q4_1": Type(32, 20, _q4_1),
    "Q5_0": Type(32, 22, _q5_0),
    "Q5_1": Type(32, 24, _q5_1),
    "Q8_0": Type(32, 34, _q8_0),
    "Q2_K": Type(256, 84, _q2_k),
    "Q3_K": Type(256, 110, _q3_k),
    "Q4_K": Type(256, 144, _q4_k),
    "Q5_K": Type(256, 176, _q5_k),
    "Q6_K": Type(256, 210, _q6_k),
    "IQ4_NL": Type(32, 18, _iq4_nl),
    "IQ4_XS": Type(256, 136, _iq4_xs),
    "MXFP4": Type(32, 17, _mxfp4),
    "Q1_0": Type(128, 18, _q1_0),
    "Q2_0": Type(64, 18, _q2_0),
    **{name: Type(block, size, _by_package(name)) for name, (block, size) in _PACKAGE.items()},
}
