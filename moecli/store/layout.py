"""Where everything lies in a packed store: its files, their headers, and the place of each tensor and record."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from moecli.checkpoint.binding import FLOATS, Weights, format_of
from moecli.checkpoint.stored import ITEM_SIZES
from moecli.formats import PLAIN, bytes_for
from moecli.formats.words import formats_of
from moecli.model.spec import ModelSpec
from moecli.model.tensors import Tensor, dense_tensors
from moecli.store.expert_record import PAGE, Record, check_dense, compute_dtype, dense_dtype, layer_records

DENSE = "dense.safetensors"
EXPERTS = "experts"  # the role of the routed experts, and the one tensor of their files
_CODES = {format: code for code, format in FLOATS.items()}
_LINE = 64  # what a kernel likes its matrices to start on


@dataclass(frozen=True, slots=True)
class Place:
    """One dense tensor: `size` bytes in `dtype`, `offset` from the start of the file."""

    tensor: Tensor
    dtype: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        return tensor_name(self.tensor)


@dataclass(frozen=True)
class StoreLayout:
    """A spec in a format: which format each role has, and from that every byte's place.

    `roles` includes "experts" where the model has them.
    """

    spec: ModelSpec
    dtype: str
    compute: str
    roles: Mapping[str, str]

    @cached_property
    def records(self) -> dict[int, Record]:
        """By layer, for those with routed experts."""
        return layer_records(self.spec, self.dtype)

    @cached_property
    def experts(self) -> dict[int, int]:
        """How many records each of these layers has."""
        return {layer: mixture.router.experts for layer, mixture in self.spec.mixtures}

    @cached_property
    def dense(self) -> tuple[Place, ...]:
        """The dense tensors as they lie: safetensors allows no gap, so whole lines of 64 first, then large items."""
        sized = []
        for tensor in dense_tensors(self.spec):
            dtype = self.roles[tensor.role]
            sized.append((tensor, dtype, bytes_for(dtype, tensor.shape)))
        sized.sort(key=lambda each: (each[2] % _LINE != 0, -ITEM_SIZES[_CODES.get(each[1], "U8")]))
        places = []
        end = len(self._dense_header(sized))
        for tensor, dtype, size in sized:
            places.append(Place(tensor, dtype, end, size))
            end += size
        return tuple(places)

    def header(self, file: str) -> bytes:
        """The first bytes of one of the files."""
        if file == DENSE:
            return self._dense_header([(place.tensor, place.dtype, place.size) for place in self.dense])
        layer = self.layer_of(file)
        return safetensors_header([(EXPERTS, "U8", (self.experts[layer], self.records[layer].stride))])

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of every weight file, by name, in the order of the forward pass."""
        found = {DENSE: self.dense[-1].offset + self.dense[-1].size}
        for layer, record in self.records.items():
            found[experts_file(layer)] = self.records_start(layer) + self.experts[layer] * record.stride
        return found

    def records_start(self, layer: int) -> int:
        """Where the first record of a layer lies in its file: on a page."""
        return len(self.header(experts_file(layer)))

    def parts(self, file: str) -> list[tuple[str, int, int]]:
        """What has a digest of its own: (in words, offset, size), one after another from the header to the end."""
        if file == DENSE:
            return [(f"tensor '{place.name}'", place.offset, place.size) for place in self.dense]
        layer = self.layer_of(file)
        start, stride = self.records_start(layer), self.records[layer].stride
        return [(f"expert {n} of layer {layer}", start + n * stride, stride) for n in range(self.experts[layer])]

    def layer_of(self, file: str) -> int:
        return int(file.removeprefix("experts-").removesuffix(".safetensors"))

    @staticmethod
    def _dense_header(sized: Sequence[tuple[Tensor, str, int]]) -> bytes:
        return safetensors_header(
            [(tensor_name(tensor), *_stored_as(tensor, dtype, size)) for tensor, dtype, size in sized]
        )


def choose_layout(weights: Weights, dtype: str) -> StoreLayout:
    """The layout of a checkpoint packed to `dtype`: what chooses keeps its precision, sensitive tensors 16 bits."""
    check_dense(weights.spec, dtype)
    compute = compute_dtype(dtype, weights.dtype)
    roles = {EXPERTS: formats_of(dtype).experts} if weights.spec.mixtures else {}
    for tensor in dense_tensors(weights.spec):
        if tensor.chooses:
            stored = {format_of(part) for part in weights.dense(tensor)}
            stored |= {roles[tensor.role]} if tensor.role in roles else set()
            roles[tensor.role] = stored.pop() if len(stored) == 1 else "fp32"
        else:
            roles[tensor.role] = dense_dtype(tensor, dtype, compute)
    return StoreLayout(weights.spec, dtype, compute, roles)


def are_possible(spec: ModelSpec, dtype: str, compute: str, roles: Mapping[str, str]) -> bool:
    """Whether a store of `dtype` can have these formats by role."""
    expected = {EXPERTS: {formats_of(dtype).experts}} if spec.mixtures else {}
    for tensor in dense_tensors(spec):
        expected[tensor.role] = set(PLAIN) if tensor.chooses else {dense_dtype(tensor, dtype, compute)}
    return roles.keys() == expected.keys() and all(roles[role] in formats for role, formats in expected.items())


def tensor_name(tensor: Tensor) -> str:
    """How a dense tensor is called in its file: `embedding`, `layers.3.qkv`."""
    return tensor.role if tensor.layer is None else f"layers.{tensor.layer}.{tensor.role}"


def experts_file(layer: int) -> str:
    return f"experts-{layer:03d}.safetensors"


def _stored_as(tensor: Tensor, dtype: str, size: int) -> tuple[str, tuple[int, ...]]:
    """What safetensors calls it: a quantised matrix is a flat run of bytes."""
    return (_CODES[dtype], tensor.shape) if dtype in _CODES else ("U8", (size,))


def safetensors_header(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """A safetensors header padded with blanks, so that the data starts on a page."""
    described: dict[str, object] = {"__metadata__": {"format": "moecli"}}
    end = 0
    for name, code, shape in tensors:
        start, end = end, end + ITEM_SIZES[code] * math.prod(shape)
        described[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(described, separators=(",", ":")).encode()
    length = -(-(8 + len(text)) // PAGE) * PAGE - 8
    return length.to_bytes(8, "little") + text.ljust(length)
