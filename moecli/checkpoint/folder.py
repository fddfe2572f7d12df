"""A folder of weights: its tensors by name, from the headers of its files; bytes mapped and handed out by offset."""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from moecli.checkpoint import files, gguf
from moecli.checkpoint.files import weight_map
from moecli.checkpoint.grok_release import with_tree_names
from moecli.checkpoint.headers import read_header
from moecli.checkpoint.stored import StoredTensor, damaged
from moecli.errors import CheckpointError, unreadable

_LOG = logging.getLogger(__name__)

_LARGEST_INDEX = 256 * 1024**2
_PIECE = 4 * 1024**2  # bytes compared at once
_STEP = 1 << 26  # bytes that are brought into memory between two looks at how far that is
_POPULATE_READ = 22  # Linux's MADV_POPULATE_READ, which the mmap module does not name


def merged(headers: Iterable[Mapping[str, StoredTensor]], index: Mapping[str, str]) -> dict[str, StoredTensor]:
    """The tensors of several files. The copy in the file that the index names counts; without that, two are refused."""
    found: dict[str, StoredTensor] = {}
    copies: dict[str, StoredTensor] = {}
    for header in headers:
        for name in header.keys() & found.keys():
            copies[name] = header[name]
        found |= {name: it for name, it in header.items() if name not in copies or index.get(name) == it.path.name}
    if clash := min((name for name in copies if index.get(name) != found[name].path.name), default=None):
        one, other = found[clash].path.name, copies[clash].path.name
        raise files.cut_apart((one, other)) or CheckpointError(f"'{clash}' is in {one} and in {other}")
    return with_tree_names(found)


class Checkpoint:
    """All tensors of a folder of weights; bytes are mapped when first asked for."""

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
        if (file := gguf.noted_file(folder)) is not None:
            return cls(gguf.read_model(file).tensors)
        try:
            names = files.names_in(folder)
        except OSError as error:
            raise unreadable(folder, error) from error
        kind = files.container(names)
        index = _index(folder / kind.index)
        chosen = files.choose(names, index, lambda: _tensors_in(folder / kind.single))
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
        return cls(merged((read_header(folder / name, name) for name in chosen), index or {}), index)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> StoredTensor:
        try:
            return self.tensors[name]
        except KeyError:
            shard = self.index.get(name, "")
            promised = f": {files.container([shard]).index} says that {shard} holds it" if shard else ""
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
                        raise damaged(tensor.path, f"'{tensor.name}' is cut short")
                    done += read
        except OSError as error:
            raise unreadable(tensor.path, error) from error

    def whole(self, tensor: StoredTensor) -> bytes:
        """All bytes of a small tensor."""
        found = bytearray(tensor.size)
        self.read_into(memoryview(found), tensor)
        return bytes(found)

    def read_strided(self, target: memoryview, tensor: StoredTensor, offset: int, width: int, pitch: int) -> None:
        """Fill `target` with pieces of `width` bytes that begin every `pitch` bytes from `offset` of `tensor` on."""
        pieces = len(target) // width
        if width == pitch:
            self.read_into(target, tensor, offset)
            return
        _LOG.debug("reads %d pieces of %d bytes of %s from %s", pieces, width, tensor.name, tensor.path)
        begin = tensor.offset + offset
        try:
            with tensor.path.open("rb", buffering=0) as file:
                if hasattr(os, "posix_fadvise"):  # in one go, where it is not cached
                    os.posix_fadvise(file.fileno(), begin, pieces * pitch, os.POSIX_FADV_WILLNEED)
                for piece in range(pieces):
                    file.seek(begin + piece * pitch)
                    if file.readinto(target[piece * width : (piece + 1) * width]) != width:
                        raise damaged(tensor.path, f"'{tensor.name}' is cut short")
        except OSError as error:
            raise unreadable(tensor.path, error) from error

    def same_bytes(self, one: StoredTensor, other: StoredTensor) -> bool:
        """Whether two tensors are stored alike; reads them, up to the first difference, without mapping them."""
        if (one.dtype, one.shape, one.transposed) != (other.dtype, other.shape, other.transposed):
            return False
        if type(one.encoding) is not type(other.encoding) or len(one.parts) != len(other.parts):
            return False
        return all(map(self._same_part, one.parts, other.parts))

    def _same_part(self, one: StoredTensor, other: StoredTensor) -> bool:
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        if (one.path, one.offset) == (other.path, other.offset):
            return True
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


def _index(path: Path) -> dict[str, str] | None:
    """The index of a folder's shards; None where it has none."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _LARGEST_INDEX:
            raise CheckpointError(f"{path.name} is too large")
        return weight_map(path.read_bytes(), path.name)
    except OSError as error:
        raise unreadable(path, error) from error


def _tensors_in(path: Path) -> Collection[str]:
    """The names in a file; none in one that is damaged, which thus is no whole model."""
    try:
        return read_header(path).keys()
    except CheckpointError:
        return ()
