"""How fast a disk reads, measured with the program's own readers: on a packed store, or on a file of random bytes."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from moecli.errors import MoecliError
from moecli.experts.readers import Range, Readers
from moecli.store.expert_record import PAGE
from moecli.store.filesystem import reads_directly

SAMPLE = 256 * 2**20
_BLOCK = 16 * 2**20  # written and synced at once
_PATIENCE = 1.0  # seconds after which no more is written


@dataclass(frozen=True, slots=True)
class Reading:
    """`direct`: past the page cache (O_DIRECT). Without a speed, `failure` says why."""

    bytes_per_s: float | None
    direct: bool | None
    failure: str | None


def read_store(folder: Path) -> Reading:
    """A short burst over a packed store."""
    from moecli.experts import disk
    from moecli.store.packed import PackedStore

    try:
        store = PackedStore.open(folder)
        layer = next((layer for layer, _ in store.spec.mixtures), None)
        if layer is None:
            return Reading(None, None, f"{folder.name} holds no experts")
        return Reading(disk.measure(store), reads_directly(store.experts(layer).path), None)
    except MoecliError as error:
        return Reading(None, None, error.message)


def read_new_file(folder: Path, size: int = SAMPLE) -> Reading:
    """A file of at most `size` written there. It loses its name before it grows: nothing is left however this ends."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=".moecli-doctor-", dir=folder)
        path = Path(name)
        try:
            return _read_nameless(descriptor, path, size)
        finally:
            path.unlink(missing_ok=True)
    except OSError as error:
        return Reading(None, None, error.strerror or str(error))


def _read_nameless(descriptor: int, path: Path, size: int) -> Reading:
    with os.fdopen(descriptor, "wb", buffering=0) as file, closing(Readers()) as readers:
        file.write(bytes(PAGE))
        direct = reads_directly(path)
        _read(readers, path, PAGE)  # now they hold it open
        path.unlink()
        size = _fill(descriptor, size)
        began = time.perf_counter()
        _read(readers, path, size)
        speed = size / (time.perf_counter() - began)
        file.truncate(0)  # the readers never close it
        return Reading(speed, direct, None)


def _fill(descriptor: int, most: int) -> int:
    """Write from the start, to the disk itself: how many bytes. Random ones, which no file system makes smaller."""
    block, size = os.urandom(min(_BLOCK, most)), 0
    end = time.perf_counter() + _PATIENCE
    while size < most and (not size or time.perf_counter() < end):
        size += os.pwrite(descriptor, block, size)
        os.fsync(descriptor)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, size, os.POSIX_FADV_DONTNEED)
    return size // PAGE * PAGE


def _read(readers: Readers, path: Path, size: int) -> None:
    """All of it, into the same memory again and again. OSError if it cannot be read."""
    memory = memoryview(mmap.mmap(-1, min(size, _BLOCK)))
    ranges = [Range(path, offset, memory[: size - offset]) for offset in range(0, size, _BLOCK)]
    pending = readers.read(ranges)
    pending.done.wait()
    if pending.failure is not None:
        raise pending.failure
