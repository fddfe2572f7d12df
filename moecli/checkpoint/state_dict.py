"""Files of torch.save (.bin, .pt, .pth): a state dict's tensors, found without unpickling anything.

A file is a zip archive of `NAME/data.pkl`, the pickle that describes the tensors, and of `NAME/data/KEY`, the bytes of
each storage. torch.load(weights_only=True) is not used: it takes a storage that is too short or of another byte order,
needs torch and the whole file to tell what is in it, and imports more names than tensors are made of.
Layout: torch/serialization.py and torch/_utils.py.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from moecli.checkpoint.archive import MAGIC, Entry, check_headers, read_directory
from moecli.checkpoint.pickles import ORDERED_DICT, Call, Global, Persistent, read_pickle, refused
from moecli.checkpoint.stored import ITEM_SIZES, Source, StoredTensor, damaged, local_source

_LOG = logging.getLogger(__name__)
_TYPED = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}  # fmt: skip
_STORAGES = {f"torch.{name}": dtype for name, dtype in _TYPED.items()} | {"torch.storage.UntypedStorage": "U8"}
_DTYPES = {
    "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2", "torch.float8_e8m0fnu": "F8_E8M0",
    "torch.uint16": "U16", "torch.uint32": "U32", "torch.uint64": "U64",
}  # fmt: skip
_TENSOR, _TENSOR_OF_DTYPE = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"
_PARAMETER = "torch._utils._rebuild_parameter"
_ALLOWED = frozenset({ORDERED_DICT, _TENSOR, _TENSOR_OF_DTYPE, _PARAMETER, *_STORAGES, *_DTYPES})
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")  # under which trainers keep the tensors
_MOST_AXES = 8


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, every claim checked against the file's real size; none of them is read.

    CheckpointError for a file that is damaged, of another kind, or whose pickle holds more than tensors.
    """
    with local_source(path) as (source, size):
        entries = _entries(source, path, size)
        check_headers(source, entries, path.name)
        return _tensors(source, path, entries)


def remote_header(source: Source, name: str, size: int) -> dict[str, StoredTensor]:
    """The same of a file that is not here: its directory and its pickle are read, and no entry's own header."""
    path = Path(name)
    return _tensors(source, path, _entries(source, path, size))


def _entries(source: Source, path: Path, size: int) -> dict[str, Entry]:
    if (start := source(0, 4)) != MAGIC:
        old = start[:1] == b"\x80"
        raise damaged(path, "it was written by torch before 1.6, as no zip" if old else "it is no file of torch.save")
    return read_directory(source, size, path.name)


def _tensors(source: Source, path: Path, entries: dict[str, Entry]) -> dict[str, StoredTensor]:
    pickles = [each for name, each in entries.items() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise damaged(path, "it is a zip without a data.pkl, or of several, as torch writes none")
    (pickle,) = pickles
    root = pickle.name.removesuffix("data.pkl")
    order = entries.get(f"{root}byteorder")
    if order is not None and source(order.offset, min(order.size, 8)) != b"little":
        raise damaged(path, "its numbers are not little-endian")
    _LOG.debug("reads the pickle of %s: %d bytes", path, pickle.size)
    value = read_pickle(source, pickle.offset, pickle.offset + pickle.size, _ALLOWED, path.name)
    reader = _Reader(path, entries, f"{root}data/")
    return {name: reader.tensor(name, call) for name, call in _state_dict(value, path)}


def _state_dict(value: Any, path: Path) -> Iterator[tuple[str, Call]]:
    """The named tensors of a pickle; numbers and words beside them say nothing."""
    if type(value) is dict and not any(type(each) is Call for each in value.values()):
        value = next((value[key] for key in _WRAPPERS if type(value.get(key)) is dict), value)
    if type(value) is not dict:
        raise refused(path.name, "it holds no dict of tensors")
    for name, each in value.items():
        if type(each) is Call and type(name) is str:
            yield name, each
        elif each is not None and type(each) not in (bool, int, float, str):
            raise refused(path.name, f"'{str(name)[:80]}' is no tensor")


class _Reader:
    """Makes tensors of one file from the calls that would have made them."""

    def __init__(self, path: Path, entries: dict[str, Entry], folder: str) -> None:
        self._path, self._entries, self._folder = path, entries, folder

    def tensor(self, name: str, call: Call) -> StoredTensor:
        match call:
            case Call(name=name_, args=(Call() as inner, bool(), {**_hooks})) if name_ == _PARAMETER:
                return self.tensor(name, inner) if inner.name != _PARAMETER else self._refuse(name)
            case Call(name=name_, args=(Persistent() as storage, int(first), tuple(shape), tuple(strides), *rest)):
                if name_ == _TENSOR and rest:
                    dtype, entry = self._storage(name, storage)
                    return self._located(name, dtype, entry, first, shape, strides)
                if name_ == _TENSOR_OF_DTYPE and len(rest) > 2 and isinstance(rest[2], Global):
                    _, entry = self._storage(name, storage)
                    dtype = _DTYPES.get(rest[2].name, "") or self._refuse(name)
                    return self._located(name, dtype, entry, first, shape, strides)
        return self._refuse(name)

    def _storage(self, name: str, storage: Persistent) -> tuple[str, Entry]:
        """The dtype and the bytes of a storage; the size that it claims is that of its entry."""
        match storage.about:
            case ("storage", Global(name=kind), str(key), str(), int(count)):
                dtype = _STORAGES.get(kind, "") or self._refuse(name)
            case _:
                self._refuse(name)
        entry = self._entries.get(self._folder + key)
        if entry is None:
            raise damaged(self._path, f"the storage of '{name[:80]}' is missing")
        if entry.size != count * ITEM_SIZES[dtype]:
            raise damaged(self._path, f"the storage of '{name[:80]}' is not as large as it claims")
        return dtype, entry

    def _located(
        self, name: str, dtype: str, entry: Entry, first: int, shape: tuple[Any, ...], strides: tuple[Any, ...]
    ) -> StoredTensor:
        whole = all(type(each) is int and 0 <= each < 2**48 for each in (first, *shape, *strides))
        if not whole or len(shape) != len(strides) or len(shape) > _MOST_AXES:
            self._refuse(name)
        item, numbers = ITEM_SIZES[dtype], math.prod(shape)
        transposed = False
        if numbers and not _follows(shape, strides):
            transposed = len(shape) == 2 and _follows(shape[::-1], strides[::-1])
            if not transposed:
                raise refused(self._path.name, f"the numbers of '{name[:80]}' do not lie one behind another")
        size = numbers * item
        if first * item + size > entry.size:
            raise damaged(self._path, f"'{name[:80]}' ends outside its storage")
        return StoredTensor(name, dtype, shape, self._path, entry.offset + first * item, size, transposed)

    def _refuse(self, name: str) -> NoReturn:
        raise refused(self._path.name, f"'{name[:80]}' is described in an unknown way")


def _follows(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether numbers with these strides lie one behind another, the last axis first."""
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length > 1 and stride != expected:
            return False
        expected *= length
    return True
