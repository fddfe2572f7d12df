"""A session file: blocks of prompts that were read, over restarts; safetensors one after another, no bit of it trusted.

Each block is a safetensors file by itself: of every layer what its cache holds of the block's tokens, by name, and in
the header's metadata the key of the block. A key stands for the model, how it computes, and all tokens up to the
block's end, so that texts with a common beginning share its blocks. A block is added once it is read; what a kill
leaves of the last one is cut off by whoever writes next.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import FileIO
from itertools import count
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from moecli.checkpoint.safetensors import parse_header
from moecli.engine.cache import Cache
from moecli.errors import DiskError, MoecliError, printable
from moecli.store.filesystem import FULL
from moecli.units import format_bytes

try:
    import fcntl
except ImportError:  # not a Unix: files are nobody's there
    fcntl = None  # type: ignore[assignment]

_FORMAT = "moecli session 1"
_LARGEST_HEADER = 2**22  # bytes
_MOST_TOKENS = 65_536  # that a file holds, unless a context is longer
_BLANK = "0" * 64  # where a checksum goes
_BINARY = getattr(os, "O_BINARY", 0)  # of Windows
Warn = Callable[[str], None]
Failed = Callable[[MoecliError], object]


@dataclass(frozen=True, slots=True)
class Identity:
    """What the numbers in a cache depend on beside tokens, in words and as SHA-256 in hexadecimal digits."""

    model: str
    digest: str


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a block lies in the file, in bytes, the checksum of its data, and when it was used last."""

    offset: int
    size: int
    sha256: str
    used: int = 0


class SessionFile:
    """The blocks in one file, which nobody else uses meanwhile. What is wrong with it costs time, never an answer."""

    def __init__(self, path: Path, identity: Identity, block: int, context: int, warn: Warn, failed: Failed) -> None:
        """Open it, or begin one. `block`: tokens of each. It holds at most those of 4 texts of `context`, or 65,536.

        `warn` is told what of the file is left out, and `failed`, once, why nothing more is kept.
        """
        self.path = Path(os.path.realpath(path))
        self._identity, self._block, self._warn, self._failed = identity, block, warn, failed
        self._most = max(_MOST_TOKENS, 4 * context)
        self._blocks: dict[str, _Place] = {}
        self._end = 0
        self._clock = count(1)
        self._file: FileIO | None = None
        try:
            self._open()
        except OSError as error:
            self._give_up(error)

    def restore(self, cache: Cache, prompt: Sequence[int], most: int) -> int:
        """Add to the beginning of the prompt that `cache` holds, whole blocks, those that follow, up to `most` tokens.

        Returns how many it then holds.
        """
        held, tick = cache.length, next(self._clock)
        for start, key in self._keys(prompt, most):
            end = start + self._block
            place = self._blocks.get(key)
            if end > held:
                if place is None or start != held:
                    break
                block = self._load(place, cache)
                if block is None or not cache.put(block, self._block):
                    self._warn(f"{self._shown}: a block of it is damaged, and is read from the prompt again")
                    del self._blocks[key]
                    break
                held = end
            if place is not None:
                self._blocks[key] = replace(place, used=tick)
        return held

    def keep(self, cache: Cache, ids: Sequence[int], end: int) -> None:
        """Add the block that ends there, which `cache` has read as part of a prompt, unless it is known."""
        tick, last = next(self._clock), ""
        for start, key in self._keys(ids, end):
            place = self._blocks.get(key)
            if place is not None:
                self._blocks[key] = replace(place, used=tick)
            elif start + self._block < end:
                return  # what it goes on from is not there
            last = key
        if self._file is None or last in self._blocks:
            return
        block = cache.block(end - self._block, end)
        if block is None:
            return
        tensors = {f"{number}.{name}": rows for number, each in enumerate(block) for name, rows in each.items()}
        try:
            self._append(last, *_sealed(tensors, last), tick)
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Everything is on the disk, as far as it goes."""
        if self._file is None:
            return
        try:
            self._file.truncate(self._end)  # what an interrupt has left
            os.fsync(self._file.fileno())
        except OSError as error:
            self._give_up(error)
            return
        self._file.close()
        self._file = None

    @property
    def _shown(self) -> str:
        return printable(str(self.path), 120)

    def _keys(self, ids: Sequence[int], most: int) -> Iterator[tuple[int, str]]:
        """Where each block of a text begins, and its key."""
        key = self._identity.digest
        for start in range(0, min(most, len(ids)) // self._block * self._block, self._block):
            tokens = ids[start : start + self._block]
            key = _digest(key.encode() + struct.pack(f"<{len(tokens)}q", *tokens))
            yield start, key

    def _open(self) -> None:
        """Find what is there; begin anew if that is nothing, or another model's."""
        while True:
            try:
                file = os.fdopen(os.open(self.path, os.O_RDWR | _BINARY), "r+b", buffering=0)
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    self._failed(DiskError(f"the session {self._shown} is no regular file", "name another file"))
                    return
                if not _lock(file):
                    file.close()
                    self._warn(f"{self._shown} is used by another moecli: nothing is taken from it, and nothing kept")
                    return
                if os.path.samestat(status, self.path.stat()):
                    break
            except FileNotFoundError:
                self._begin(())
                return
            file.close()  # somebody has just replaced it
        size = status.st_size
        found = self._header(file, 0, size)
        told = {} if found is None else found[0]
        if size and told.get("format") != _FORMAT:
            file.close()
            self._warn(f"{self._shown} is no session of moecli: nothing is taken from it, and nothing kept")
        elif told.get("identity") != self._identity.digest:
            if size:
                model = printable(told.get("model", ""), 80)
                self._warn(f"{self._shown} is of {model or 'another model'}, or of another moecli: it begins anew")
            self._begin(())
            file.close()
        else:
            self._file = file
            assert found is not None
            self._index(found[1], size)

    def _index(self, offset: int, size: int) -> None:
        """Where the blocks behind `offset` are, up to the first that is none."""
        assert self._file is not None
        while offset < size:
            found = self._header(self._file, offset, size)
            if found is None or found[0].keys() != {"key", "sha256"}:
                left = format_bytes(size - offset)
                self._warn(f"{self._shown}: its last {left} are damaged or cut off, and are left out")
                break
            self._blocks[found[0]["key"]] = _Place(offset, found[1] - offset, found[0]["sha256"])
            offset = found[1]
        self._end = offset

    def _header(self, file: FileIO, offset: int, size: int) -> tuple[dict[str, str], int] | None:
        """The metadata of the safetensors there, and where they end; None if there are none, or not whole."""
        file.seek(offset)
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_LARGEST_HEADER, size - offset - 8):
            return None
        text = file.read(length)
        try:
            header = parse_header(self.path, text)
            told = header.pop("__metadata__", None)
            ends = [each["data_offsets"][1] for each in header.values()]
        except (MoecliError, LookupError, TypeError):
            return None
        if not isinstance(told, dict) or not all(isinstance(each, str) for each in told.values()):
            return None
        left = size - offset - 8 - length
        if not all(type(end) is int and 0 <= end <= left for end in ends):
            return None
        return told, offset + 8 + length + max(ends, default=0)

    def _load(self, place: _Place, cache: Cache) -> list[dict[str, Tensor]] | None:
        """The tensors of a block, by layer; None if they are not those that were written."""
        rows = sum(layer.row_bytes for layer in cache.layers)
        if self._file is None or place.size > rows * self._block + _LARGEST_HEADER:
            return None
        try:
            self._file.seek(place.offset)
            content = self._file.read(place.size)
            if len(content) < place.size or _digest(content[_data(content) :]) != place.sha256:
                return None
            tensors = load(content)  # which checks every shape and offset
        except (OSError, SafetensorError):
            return None
        block: list[dict[str, Tensor]] = [{} for _ in cache.layers]
        for name, tensor in tensors.items():
            number, _, role = name.partition(".")
            if not number.isdecimal() or int(number) >= len(block):
                return None
            block[int(number)][role] = tensor
        return block

    def _append(self, key: str, content: bytes, sha256: str, tick: int) -> None:
        most = len(content) * self._most // self._block
        if self._end + len(content) > most:
            self._begin(self._recent(most // 2))
        assert self._file is not None
        self._file.seek(self._end)
        self._file.truncate()  # what a kill has left
        _write(self._file, content)
        self._blocks[key] = _Place(self._end, len(content), sha256, tick)
        self._end += len(content)

    def _recent(self, most: int) -> list[tuple[str, _Place]]:
        """The blocks that were used last, each behind those that it goes on from, as many as take `most` bytes."""
        found, total = [], 0
        for key, place in sorted(self._blocks.items(), key=lambda each: (-each[1].used, each[1].offset)):
            total += place.size
            if total > most:
                break
            found.append((key, place))
        return found

    def _begin(self, blocks: Iterable[tuple[str, _Place]]) -> None:
        """A new file with these blocks of this one takes its place, whole."""
        new = self.path.with_name(f".moecli-{os.urandom(8).hex()}")
        told = {"format": _FORMAT, "model": self._identity.model, "identity": self._identity.digest}
        places: dict[str, _Place] = {}
        file = os.fdopen(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY, 0o600), "w+b", buffering=0)
        try:
            _lock(file)
            _write(file, save({}, told))
            for key, place in blocks:
                assert self._file is not None
                self._file.seek(place.offset)
                places[key] = replace(place, offset=file.tell())
                _write(file, self._file.read(place.size))
            os.fsync(file.fileno())
            new.replace(self.path)
        except BaseException:
            file.close()
            new.unlink(missing_ok=True)
            raise
        if self._file is not None:
            self._file.close()
        self._file, self._blocks, self._end = file, places, file.tell()

    def _give_up(self, error: OSError) -> None:
        """Nothing more is kept; what is whole stays."""
        hint = "free some space" if error.errno in FULL else "name another file"
        told = f"the session {self._shown} cannot be written: {error.strerror or error}"
        file, self._file = self._file, None
        self._blocks.clear()
        if file is not None:
            with suppress(OSError):
                file.truncate(self._end)
            file.close()
        self._failed(DiskError(told, hint))


def _sealed(tensors: Mapping[str, Tensor], key: str) -> tuple[bytes, str]:
    """A safetensors file whose metadata have the checksum of its data, and that."""
    content = save({name: rows.cpu().contiguous() for name, rows in tensors.items()}, {"key": key, "sha256": _BLANK})
    begin = _data(content)
    sha256 = _digest(content[begin:])
    return content[:begin].replace(_BLANK.encode(), sha256.encode(), 1) + content[begin:], sha256


def _data(content: bytes) -> int:
    """Where the data of a safetensors file begin."""
    return 8 + int.from_bytes(content[:8], "little")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(file: FileIO, content: bytes) -> None:
    """All of it, and nothing once that has failed: no buffer tries again."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _lock(file: FileIO) -> bool:
    """Whether nobody else has this file, or the system cannot tell."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
