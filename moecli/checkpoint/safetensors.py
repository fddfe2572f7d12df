"""Safetensors on disk: headers checked before anything is trusted, bytes mapped and handed out by offset."""

from __future__ import annotations

import contextlib
import logging
import math
import mmap
import re
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecli.errors import CheckpointError, json_object, unreadable

_LOG = logging.getLogger(__name__)

# Bytes per number of the safetensors dtypes; sub-byte types are left out and refused.
ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "U64": 8, "U32": 4, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
INDEX = "model.safetensors.index.json"
_LARGEST_HEADER = 100_000_000  # the format's own limit
_LARGEST_INDEX = 256 * 1024**2
_POPULATE_READ = 22  # Linux's MADV_POPULATE_READ, which the mmap module does not name
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")  # of weights; never opened


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies: `size` bytes at `offset` of `path`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    size: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, every claim checked against the file's real size."""
    try:
        file_size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if file_size < 8 or not 2 <= length <= min(_LARGEST_HEADER, file_size - 8):
                raise _damaged(path, f"its header claims {length} bytes and the file has {file_size}")
            text = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from error
    _LOG.debug("reads the header of %s: %d of %d bytes", path, length, file_size)
    return header_tensors(path, text, file_size)


def header_tensors(path: Path, text: bytes, file_size: int) -> dict[str, StoredTensor]:
    """The tensors that the JSON of a header describes, held against the size of the file it heads."""
    start = 8 + len(text)
    header = parse_header(path, text)
    tensors = [_checked(path, name, entry, start) for name, entry in header.items() if name != "__metadata__"]
    _check_layout(path, tensors, start, file_size)
    return {tensor.name: tensor for tensor in tensors}


def parse_header(path: Path, text: bytes) -> dict[str, Any]:
    """The JSON object of a header; names that appear twice are refused."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise _damaged(path, "its header names a tensor twice")
        return dict(pairs)

    return json_object(text, lambda problem: _damaged(path, f"its header {problem}"), unique)


def _checked(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        item = ITEM_SIZES[dtype]
        whole = all(type(n) is int and 0 <= n < 2**48 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"its header describes '{name[:80]}' in an unknown way") from error
    if type(shape) is not list or not whole or len(shape) > 8 or begin > end or end - begin != math.prod(shape) * item:
        raise _damaged(path, f"the shape and the offsets of '{name[:80]}' disagree")
    return StoredTensor(name, dtype, tuple(shape), path, start + begin, end - begin)


def _check_layout(path: Path, tensors: Iterable[StoredTensor], start: int, file_size: int) -> None:
    end = start
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.size)):
        if tensor.offset < end:
            raise _damaged(path, f"'{tensor.name}' overlaps the tensor before it")
        end = tensor.offset + tensor.size
        if end > file_size:
            raise _damaged(path, f"'{tensor.name}' ends at byte {end} and the file at {file_size}: it is cut short")


def _damaged(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{path.name} is damaged: {problem}", "fetch the file again")


class Checkpoint:
    """All tensors of a folder of safetensors files; bytes are mapped when first asked for."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self.tensors = dict(tensors)
        self._maps: dict[Path, mmap.mmap] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the headers of `folder`: one file, shards with an index, or shards without one."""
        index = folder / INDEX
        paths = _indexed(folder, index) if index.is_file() else _unindexed(folder)
        if not paths:
            raise _no_weights(folder)
        tensors: dict[str, StoredTensor] = {}
        for path in paths:
            header = read_header(path)
            if both := tensors.keys() & header.keys():
                raise CheckpointError(f"'{min(both)}' is in {tensors[min(both)].path.name} and in {path.name}")
            tensors |= header
        if not index.is_file():
            _check_numbering(folder, paths)
        return cls(tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> StoredTensor:
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(
                f"tensor '{name}' is missing from the checkpoint", "is a shard missing? fetch the model again"
            ) from None

    def read_into(self, target: memoryview, tensor: StoredTensor, offset: int = 0) -> None:
        """Fill `target` with the bytes of `tensor` from `offset` on, without mapping them."""
        _LOG.debug("reads %d bytes of %s from %s", len(target), tensor.name, tensor.path)
        try:
            with tensor.path.open("rb", buffering=0) as file:
                file.seek(tensor.offset + offset)
                done = 0
                while done < len(target):
                    read = file.readinto(target[done:])
                    if not read:
                        raise _damaged(tensor.path, f"'{tensor.name}' is cut short")
                    done += read
        except OSError as error:
            raise unreadable(tensor.path, error) from error

    def populate(self, tensors: Iterable[StoredTensor]) -> None:
        """Bring tensors into memory now, in file order, not fault by fault later. Linux only; elsewhere nothing."""
        if not sys.platform.startswith("linux"):
            return
        for tensor in sorted(tensors, key=lambda t: (t.path, t.offset)):
            start = tensor.offset // mmap.PAGESIZE * mmap.PAGESIZE
            with contextlib.suppress(OSError):  # a kernel older than 5.14
                self._map(tensor.path).madvise(_POPULATE_READ, start, tensor.offset + tensor.size - start)

    def buffer(self, tensor: StoredTensor) -> memoryview:
        """The mapped bytes of `tensor`. Copy-on-write, so that a stray write can never reach the file."""
        return memoryview(self._map(tensor.path))[tensor.offset : tensor.offset + tensor.size]

    def _map(self, path: Path) -> mmap.mmap:
        with self._lock:
            if path not in self._maps:
                self._maps[path] = _map(path)
            return self._maps[path]


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            _LOG.debug("maps %s", path)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be mapped: {error}", "fetch the file again") from error


def weight_map(index: bytes, called: str) -> dict[str, str]:
    """The file of each tensor, as an index of shards says. CheckpointError, by what it is `called`, if it is unfit."""
    unfit = CheckpointError(f"{called} is not a readable index", "fetch the file again")
    try:
        files = json_object(index, lambda problem: unfit)["weight_map"]
        names = set(files.values())
        plain = all(isinstance(name, str) and Path(name).name == name and "\0" not in name for name in names)
    except (KeyError, TypeError, AttributeError) as error:
        raise unfit from error
    if not files:
        raise unfit
    if not plain:
        raise CheckpointError(f"{called} names a file outside its folder")
    return dict(files)


def _indexed(folder: Path, index: Path) -> list[Path]:
    """The shards that an index names; each must be a plain file name beside it."""
    try:
        if index.stat().st_size > _LARGEST_INDEX:
            raise CheckpointError(f"{index.name} is too large")
        paths = [folder / name for name in sorted(set(weight_map(index.read_bytes(), index.name).values()))]
        here = {path.name for path in folder.iterdir() if path.is_file()}  # no name is too long to be looked for
    except OSError as error:
        raise unreadable(index, error) from error
    missing = [path.name for path in paths if path.name not in here]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(paths)} shards are missing, {missing[0]} first", "fetch the model again"
        )
    return paths


def _unindexed(folder: Path) -> list[Path]:
    """Every shard but Mistral's own `consolidated.*` copies, which repeat the weights under other names."""
    return sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("consolidated"))


def _check_numbering(folder: Path, paths: list[Path]) -> None:
    """Without an index, `x-00001-of-00003` tells how many shards there must be."""
    for path in paths:
        if match := re.fullmatch(r"(.*)-(\d+)-of-(\d+)\.safetensors", path.name):
            expected = int(match[3])
            have = sum(
                p.name.startswith(f"{match[1]}-") and p.name.endswith(f"-of-{match[3]}.safetensors") for p in paths
            )
            if have != expected:
                raise CheckpointError(f"{have} of {expected} shards of {match[1]} are here", "fetch the model again")


def _no_weights(folder: Path) -> CheckpointError:
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if pickles:
        return CheckpointError(
            f"{folder} holds only pickled weights ({pickles[0]}), which can run code when opened",
            "use a safetensors revision of the model, or convert it with its own tools",
        )
    return CheckpointError(f"{folder} holds no *.safetensors files", "fetch the model again")
