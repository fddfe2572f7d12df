"""Safetensors on disk: headers checked before anything is trusted, bytes mapped and handed out by offset."""

from __future__ import annotations

import contextlib
import logging
import math
import mmap
import stat
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecli.checkpoint import files
from moecli.checkpoint.files import INDEX, weight_map
from moecli.errors import CheckpointError, json_object, unreadable

_LOG = logging.getLogger(__name__)

# Bytes per number of the safetensors dtypes; sub-byte types are left out and refused.
ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "U64": 8, "U32": 4, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
_LARGEST_HEADER = 100_000_000  # the format's own limit
_LARGEST_INDEX = 256 * 1024**2
_PIECE = 4 * 1024**2  # bytes compared at once
_STEP = 1 << 26  # bytes that are brought into memory between two looks at how far that is
_POPULATE_READ = 22  # Linux's MADV_POPULATE_READ, which the mmap module does not name


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
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for ever
            raise CheckpointError(f"{path} cannot be read: it is no regular file")
        file_size = status.st_size
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


def merged(headers: Iterable[Mapping[str, StoredTensor]], index: Mapping[str, str]) -> dict[str, StoredTensor]:
    """The tensors of several files. The copy in the file that the index names counts; without that, two are refused."""
    found: dict[str, StoredTensor] = {}
    copies: dict[str, StoredTensor] = {}
    for header in headers:
        for name in header.keys() & found.keys():
            copies[name] = header[name]
        found |= {name: it for name, it in header.items() if name not in copies or index.get(name) == it.path.name}
    if clash := min((name for name in copies if index.get(name) != found[name].path.name), default=None):
        raise CheckpointError(f"'{clash}' is in {found[clash].path.name} and in {copies[clash].path.name}")
    return found


class Checkpoint:
    """All tensors of a folder of safetensors files; bytes are mapped when first asked for."""

    def __init__(self, tensors: Mapping[str, StoredTensor], index: Mapping[str, str] | None = None) -> None:
        self.tensors = dict(tensors)
        self.index = index or {}
        self._maps: dict[Path, mmap.mmap] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the headers of the files of `folder` that hold the model, and of no others.

        Where two of them hold a tensor, the index decides. CheckpointError if one is missing or damaged.
        """
        try:
            names = {path.name for path in folder.iterdir()}
        except OSError as error:
            raise unreadable(folder, error) from error
        index = _index(folder)
        chosen = files.choose(names, index, lambda: _tensors_in(folder / files.SINGLE))
        if not chosen:
            raise files.no_weights(names, str(folder))
        here = {name for name in names if (folder / name).exists()} if len(chosen) > 1 else names
        if gone := files.missing(chosen, here):
            more = f", then {', '.join(gone[1:4])}" + (f" and {len(gone) - 4} more" if len(gone) > 4 else "")
            raise CheckpointError(
                f"{len(gone)} of {len(gone) + len(here.intersection(chosen))} shards are missing, {gone[0]} first"
                + (more if gone[1:] else ""),
                "fetch the model again",
            )
        return cls(merged((read_header(folder / name) for name in chosen), index or {}), index)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> StoredTensor:
        try:
            return self.tensors[name]
        except KeyError:
            promised = f": {INDEX} says that {self.index[name]} holds it" if name in self.index else ""
            raise CheckpointError(
                f"tensor '{name}' is missing from the checkpoint{promised}", "is a shard missing? fetch the model again"
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

    def same_bytes(self, one: StoredTensor, other: StoredTensor) -> bool:
        """Whether two tensors are stored alike; reads them, up to the first difference, without mapping them."""
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        for start in range(0, one.size, _PIECE):
            pieces = [bytearray(min(_PIECE, one.size - start)) for _ in range(2)]
            for piece, tensor in zip(pieces, (one, other), strict=True):
                self.read_into(memoryview(piece), tensor, start)
            if pieces[0] != pieces[1]:
                return False
        return True

    def populate(self, tensors: Iterable[StoredTensor], progress: Callable[[int, int], None]) -> None:
        """Bring tensors into memory now, in file order, not fault by fault later. Linux only; elsewhere nothing.

        `progress` is told bytes done, of how many.
        """
        if not sys.platform.startswith("linux"):
            return
        wanted = sorted(tensors, key=lambda t: (t.path, t.offset))
        done, total = 0, sum(tensor.size for tensor in wanted)
        for tensor in wanted:
            for begin in range(tensor.offset, tensor.offset + tensor.size, _STEP):
                start, end = begin // mmap.PAGESIZE * mmap.PAGESIZE, min(begin + _STEP, tensor.offset + tensor.size)
                with contextlib.suppress(OSError):  # a kernel older than 5.14
                    self._map(tensor.path).madvise(_POPULATE_READ, start, end - start)
                progress(done := done + end - begin, total)

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


def _index(folder: Path) -> dict[str, str] | None:
    """The index of a folder's shards; None where it has none."""
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _LARGEST_INDEX:
            raise CheckpointError(f"{INDEX} is too large")
        return weight_map(path.read_bytes(), INDEX)
    except OSError as error:
        raise unreadable(path, error) from error


def _tensors_in(path: Path) -> Collection[str]:
    """The names in a file; none in one that is damaged, which thus is no whole model."""
    try:
        return read_header(path).keys()
    except CheckpointError:
        return ()
