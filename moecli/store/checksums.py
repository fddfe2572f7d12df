"""Checksums of a file and of each of its parts, in one reading."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from moecli.store.manifest import FileChecksums

_CHUNK = 4 * 2**20
_HALF = 32  # hexadecimal digits of a part's digest


def _unwatched(size: int) -> None:
    """Nobody watches."""


def file_checksums(
    path: Path, parts: Sequence[tuple[int, int]] = (), seen: Callable[[int], None] = _unwatched
) -> FileChecksums:
    """`parts` are (offset, size), one after another; what is before and behind them is only in the whole.

    `seen` is told the bytes of each chunk.
    OSError where the file cannot be read. Parts beyond its end have the digest of nothing.
    """
    whole = hashlib.sha256()
    size = 0
    with path.open("rb", buffering=0) as file:

        def digest(length: int) -> str:
            """Of the next bytes, or of all that are left."""
            nonlocal size
            part = hashlib.sha256()
            for chunk in _chunks(file, length):
                whole.update(chunk)
                part.update(chunk)
                size += len(chunk)
                seen(len(chunk))
            return part.hexdigest()[:_HALF]

        digest(parts[0][0] if parts else 0)
        digests = tuple(digest(length) for _, length in parts)
        digest(-1)  # a file may be longer than it should be
    return FileChecksums(size, whole.hexdigest(), digests)


def _chunks(file: io.FileIO, size: int) -> Iterator[bytes]:
    """The next `size` bytes, or all that are left."""
    while size and (chunk := file.read(_CHUNK if size < 0 else min(_CHUNK, size))):
        size -= len(chunk)
        yield chunk
