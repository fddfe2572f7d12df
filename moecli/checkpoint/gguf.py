"""GGUF files: what they say of their model, and where its tensors lie, every claim held against the file's size.

Format: docs/gguf.md of ggml. Versions 2 and 3, little-endian; a model may be split into several files.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moecli import settings
from moecli.checkpoint.encodings.ggml import TYPES, Ggml
from moecli.checkpoint.gguf_names import parts_of
from moecli.checkpoint.gguf_undone import as_in_models
from moecli.checkpoint.stored import StoredTensor, damaged, regular_size
from moecli.errors import CheckpointError, json_object, printable, reading, unreadable

_LOG = logging.getLogger(__name__)
NOTE = "gguf.json"  # in a folder made of a file: where that lies
_MAGIC = b"GGUF"
# Of a whole head, in bytes and in items of lists; Qwen's are 12 MB and 0.6 M, and each item takes 60 bytes here.
_MOST_HEADER, _MOST_ITEMS = 128 * 2**20, 2**22
_MOST_KEYS, _MOST_TENSORS = 2**16, 2**20
_LONGEST_NAME, _LONGEST_TEXT, _MOST_AXES = 1024, 2**24, 4
_ALIGNMENT = 32
# By the number of a value's kind: its format in the file. 8 is text, 9 a list.
_VALUES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_NUMBERS = {  # ggml's number of each type
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
    41: "Q1_0", 42: "Q2_0",
}  # fmt: skip
# Those of activations and of what is no weight, and Q4_0 rearranged for some processor, which was given up.
_OTHERS = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 31: "Q4_0_4_4",
    32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip
_PLAIN = ("F32", "F16", "BF16")


Header = tuple[Mapping[str, Any], dict[str, StoredTensor]]


@dataclass(frozen=True, slots=True)
class GgufModel:
    """All files of one model: what the first says of it, and the tensors of all by name."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    files: tuple[Path, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: stored.shape for name, stored in self.tensors.items()}


def read_model(path: Path) -> GgufModel:
    """The model that a file holds, or begins or continues. CheckpointError for damage and for what is not read."""
    return assembled({file: read_file(file) for file in _parts(path)})


def read_file(path: Path) -> Header:
    """What one file says, and its tensors as they lie."""
    try:
        size = regular_size(path)
        with path.open("rb") as file:
            return read_header(file.read, path, size)
    except OSError as error:
        raise unreadable(path, error) from error


def assembled(parts: Mapping[Path, Header]) -> GgufModel:
    """The model of whose files these are the heads, in order. CheckpointError if they are none of one."""
    metadata: Mapping[str, Any] = {}
    tensors: dict[str, StoredTensor] = {}
    for number, (file, (said, found)) in enumerate(parts.items()):
        metadata = metadata or said
        if len(parts) > 1 and said.get("split.no") not in (None, number):
            raise damaged(file, "it is another part of its model than its name says")
        if twice := tensors.keys() & found.keys():
            raise damaged(file, f"'{printable(min(twice), 80)}' is in another part as well")
        tensors |= found
    count = metadata.get("split.tensors.count")
    if len(parts) > 1 and type(count) is int and count != len(tensors):
        raise CheckpointError(f"the {len(parts)} parts hold {len(tensors)} tensors and should hold {count}")
    return GgufModel(metadata, as_in_models(metadata, tensors), tuple(parts))


def noted_file(folder: Path) -> Path | None:
    """The GGUF file of which a folder was made; None for a folder that this program did not make of one."""
    note = folder / NOTE
    if folder.parent != settings.gguf() or not note.is_file():
        return None
    with reading(note):
        found = json_object(note.read_bytes(), lambda problem: damaged(note, problem)).get("file")
    if not isinstance(found, str):
        raise damaged(note, "it names no file")
    return Path(found)


def _parts(path: Path) -> list[Path]:
    """Every file of the model, in order."""
    files = [path.with_name(name) for name in parts_of(path.name)]
    gone = [file.name for file in files if not file.is_file()]
    if gone and len(files) > 1:
        raise CheckpointError(
            f"{len(gone)} of {len(files)} parts are missing, {printable(gone[0], 80)} first", "fetch the model again"
        )
    return files


def read_header(read: Callable[[int], bytes], path: Path, size: int) -> Header:
    """The same of a file wherever it is: `read` gives its next bytes, `size` is that of all of it."""
    return _Reader(read, path, size).read()


class _Reader:
    """Reads the head of one file from its beginning."""

    def __init__(self, read: Callable[[int], bytes], path: Path, size: int) -> None:
        self._next, self._path, self._size = read, path, size
        self._place = self._items = 0

    def read(self) -> Header:
        if self._take(4) != _MAGIC:
            raise damaged(self._path, "it is no GGUF file")
        version = self._number("I")
        if version not in (2, 3):
            raise CheckpointError(
                f"{self._path.name} is GGUF of version {version if version < 2**16 else 'another byte order'}, "
                "which is not read", "versions 2 and 3, little-endian, are",
            )  # fmt: skip
        tensors, keys = self._number("Q"), self._number("Q")
        if tensors > _MOST_TENSORS or keys > _MOST_KEYS:
            raise damaged(self._path, f"it claims {tensors} tensors and {keys} keys")
        metadata = {self._text(_LONGEST_NAME): self._value(self._number("I")) for _ in range(keys)}
        found = [self._tensor() for _ in range(tensors)]
        _LOG.debug("reads the head of %s: %d of %d bytes", self._path, self._place, self._size)
        align = metadata.get("general.alignment", _ALIGNMENT)
        if type(align) is not int or not 0 < align <= 2**20 or align % 8:
            raise damaged(self._path, "its alignment cannot be")
        start = -(-self._place // align) * align
        located = {name: _moved(stored, start) for name, stored in found}
        if len(located) < len(found):
            raise damaged(self._path, "it names a tensor twice")
        self._check(located.values())
        return metadata, located

    def _tensor(self) -> tuple[str, StoredTensor]:
        """Its offset is that from the first tensor's place."""
        name, axes = self._text(_LONGEST_NAME), self._number("I")
        if not 0 < axes <= _MOST_AXES:
            raise damaged(self._path, f"'{printable(name, 80)}' has {axes} axes")
        shape = tuple(self._number("Q") for _ in range(axes))[::-1]
        number, offset = self._number("I"), self._number("Q")
        if (kind := _NUMBERS.get(number)) is None:
            called = _OTHERS.get(number, f"the unknown type {number}")
            raise CheckpointError(
                f"{self._path.name} holds '{printable(name, 80)}' in {called}, which is not read",
                f"{', '.join(TYPES)} are: look for a file of the model in one of these",
            )
        if any(length >= 2**40 for length in shape) or math.prod(shape) >= 2**48:
            raise damaged(self._path, f"'{printable(name, 80)}' is {list(shape)}, larger than any tensor")
        width = TYPES[kind].row_bytes(shape[-1])
        if width is None:
            raise damaged(
                self._path, f"'{printable(name, 80)}' has rows of {shape[-1]} numbers, no whole blocks of {kind}"
            )
        height = math.prod(shape[:-1])
        if kind in _PLAIN:
            return name, StoredTensor(name, kind, shape, self._path, offset, height * width)
        codes = StoredTensor(name, "U8", (height, width), self._path, offset, height * width)
        return name, replace(codes, shape=shape, encoding=Ggml((codes,), "fp32", kind))

    def _check(self, tensors: Iterable[StoredTensor]) -> None:
        end = 0
        for stored in sorted(tensors, key=lambda each: (each.offset, each.size)):
            if stored.offset < end:
                raise damaged(self._path, f"'{printable(stored.name, 80)}' overlaps the tensor before it")
            end = stored.offset + stored.size
            if end > self._size:
                raise damaged(
                    self._path,
                    f"'{printable(stored.name, 80)}' ends at byte {end} and the file at {self._size}: it is cut short",
                )

    def _value(self, kind: int, nested: bool = False) -> Any:
        if kind in _VALUES:
            return self._number(_VALUES[kind])
        if kind == _TEXT:
            return self._text(_LONGEST_TEXT)
        if kind != _LIST or nested:
            raise damaged(self._path, f"it holds a value of the unknown kind {kind}")
        inner, count = self._number("I"), self._number("Q")
        self._items += count
        if self._items > _MOST_ITEMS:
            raise damaged(self._path, f"it holds a list of {count} values")
        if inner in _VALUES:
            form = _VALUES[inner]
            width = struct.calcsize(f"<{form}")
            return list(struct.unpack(f"<{count}{form}", self._take(count * width))) if count else []
        return [self._value(inner, True) for _ in range(count)]

    def _number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self._take(struct.calcsize(f"<{form}")))[0]

    def _text(self, most: int) -> str:
        length = self._number("Q")
        if length > most:
            raise damaged(self._path, f"it holds a text of {length} bytes")
        return self._take(length).decode("utf-8", "replace")

    def _take(self, count: int) -> bytes:
        self._place += count
        if self._place > min(self._size, _MOST_HEADER):
            raise damaged(self._path, "its head is cut short, or larger than any")
        found = self._next(count)
        if len(found) != count:
            raise damaged(self._path, "its head is cut short")
        return found


def _moved(stored: StoredTensor, start: int) -> StoredTensor:
    """The same so many bytes later in its file."""
    return stored.located(lambda part: replace(part, offset=start + part.offset))
