"""Packing: a checkpoint becomes a store, strip by strip; it can be stopped at any moment and goes on later."""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import Any

from moecli import __version__
from moecli.checkpoint.binding import Weights
from moecli.checkpoint.folder import Checkpoint
from moecli.errors import CheckpointError, DiskError
from moecli.store import journal, manifest
from moecli.store.checksums import file_checksums
from moecli.store.convert import packed_strips
from moecli.store.filesystem import free_space
from moecli.store.jobs import Job, by_layer, jobs
from moecli.store.journal import Journal, explained, locked, occupied, sync_folder
from moecli.store.layout import StoreLayout, choose_layout
from moecli.store.manifest import FileChecksums, Origin, StoreManifest
from moecli.store.packed import PARTIAL, PackedStore, describe_records
from moecli.store.progress import Progress, silent
from moecli.store.remove import finish_removal, leftover
from moecli.store.source import fingerprint
from moecli.text.files import texts_in
from moecli.units import format_bytes

_SYNC_EVERY = 20.0  # seconds of work that a kill may cost
_SPARE = 16 * 2**20  # for manifest and tokenizer


def pack(
    weights: Weights,
    folder: Path,
    target: Path,
    dtype: str,
    origin: Origin,
    progress: Progress = silent,
    tokenizer: Path | None = None,
) -> PackedStore:
    """Pack a checkpoint in `folder` into `target`; `origin` holds its fingerprint. A store that is there is returned.

    `tokenizer` is the file or folder that has the tokenizer instead of the checkpoint, where there is one.
    CheckpointError or DiskError explains what stopped it; the same call goes on where it stopped.
    """
    layout = choose_layout(weights, dtype)
    if (store := existing(target, layout, origin)) is not None:
        return store
    with writing(target, layout, origin, jobs(weights, layout)) as writer:
        progress(writer.packed, writer.total)
        for unit in by_layer(writer.todo):
            writer.convert(unit, weights.checkpoint, progress)
            writer.sync()
        if fingerprint(folder, weights, tokenizer) != origin.fingerprint:
            raise CheckpointError(f"{folder} changed while it was being packed", f"moecli rm {writer.folder}")
        return writer.finish(texts_in(folder, tokenizer))


def existing(target: Path, layout: StoreLayout, origin: Origin) -> PackedStore | None:
    """The finished store of this source in this format, if it is there. DiskError if something else is."""
    partial = partial_folder(target)
    with explained(partial):
        finish_removal(leftover(target))
        return _existing(target, partial, layout, origin)


def _existing(target: Path, partial: Path, layout: StoreLayout, origin: Origin) -> PackedStore | None:
    if (partial / manifest.FILE).exists() and not (partial / journal.FILE).exists():  # all was done but the last step
        with locked(partial):
            _give_name(partial, target)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    if not (target / manifest.FILE).is_file():
        raise DiskError(f"{target} is there already and is not a packed model", "name another folder with -o")
    store = PackedStore.open(target)
    if store.dtype == layout.dtype and store.source.is_same(origin):
        (target / journal.LOCK).unlink(missing_ok=True)  # a kill may have come between the name and this
        return store
    raise DiskError(
        f"{target} is there already: {store.source.model} in {store.dtype}, from another source or revision",
        f"moecli rm {target}, or name another folder with -o",
    )


def partial_folder(target: Path) -> Path:
    """Where the files of a store lie until it is whole."""
    return target.with_name(target.name + PARTIAL)


@contextlib.contextmanager
def writing(target: Path, layout: StoreLayout, origin: Origin, todo: Iterable[Job]) -> Iterator[Writer]:
    """Begin a store or go on with it, alone. DiskError if there is no room or another process is at it."""
    check_room(target, layout)
    partial = partial_folder(target)
    with explained(partial), locked(partial):
        yield Writer(target, partial, layout, origin, todo)


def room_needed(target: Path, layout: StoreLayout) -> int:
    """Bytes that the rest of a store takes, with some to spare."""
    written = sum(occupied(partial_folder(target) / name) for name in layout.sizes)
    return sum(layout.sizes.values()) + _SPARE - written


def check_room(target: Path, layout: StoreLayout, besides: int = 0) -> None:
    """DiskError unless the rest of a store, and so many bytes `besides`, fit the disk."""
    needed = room_needed(target, layout) + besides
    free = free_space(target.parent)
    if needed > free:
        raise DiskError(
            f"{target} needs {format_bytes(needed)} more on its disk, which has {format_bytes(free)} free",
            "free some space, or name a folder on another disk with -o",
        )


class Writer:
    """The files of one unfinished store. Bytes count as written once `sync` has returned."""

    def __init__(self, target: Path, partial: Path, layout: StoreLayout, origin: Origin, todo: Iterable[Job]) -> None:
        self.folder = partial
        self.journal = Journal(partial, _plan(layout, origin))
        self._target = target
        self._layout = layout
        self._origin = origin
        self._files: dict[str, FileIO] = {}
        self._finished: list[Job] = []
        self._left: dict[str, set[str]] = defaultdict(set)  # jobs not yet synced, by file
        self._synced_at = time.monotonic()
        known = list(todo)
        self.todo = [job for job in known if not self._is_done(job)]
        for job in self.todo:
            self._left[job.file].add(job.name)
        self.total = sum(job.read_size for job in known)
        self.packed = self.total - sum(job.read_size for job in self.todo)

    def convert(self, todo: Iterable[Job], checkpoint: Checkpoint, progress: Progress) -> None:
        """Pack and write some jobs whose sources are all in `checkpoint`."""
        for strip, data in packed_strips(todo, checkpoint):
            self._write(strip.job.file, strip.offset, data)
            self.packed += strip.read_size
            progress(self.packed, self.total)
            if strip.is_last:
                self._finished.append(strip.job)
                if time.monotonic() > self._synced_at + _SYNC_EVERY:
                    self.sync()

    def sync(self) -> None:
        """Make durable what was converted, note it, and seal the files that are complete."""
        for file in self._files.values():
            os.fsync(file.fileno())
            file.close()
        self._files.clear()
        sync_folder(self.folder)
        if self._finished:
            self.journal.add(done=[job.name for job in self._finished])
        for job in self._finished:
            self._left[job.file].discard(job.name)
        self._finished.clear()
        for name in self._layout.sizes:
            if not self._left[name] and name not in self.journal.sealed:
                parts = [(offset, size) for _, offset, size in self._layout.parts(name)]
                self.journal.seal(name, file_checksums(self.folder / name, parts))
        self._synced_at = time.monotonic()

    def finish(self, texts: Mapping[str, Path]) -> PackedStore:
        """Add the small files, by name, and the manifest, and give the folder its name."""
        self.sync()
        sealed = {name: self.journal.sealed[name] for name in self._layout.sizes}
        checksums = {name: self._copy(name, path) for name, path in texts.items()} | sealed
        layout = self._layout
        whole = StoreManifest(
            layout.dtype, layout.compute, self._origin, layout.roles, checksums, describe_records(layout)
        )
        whole.write(self.folder / manifest.FILE)
        _sync(self.folder / manifest.FILE)
        kept = {manifest.FILE, journal.FILE, journal.LOCK, *checksums}
        for file in [file for file in self.folder.iterdir() if file.name not in kept]:
            file.unlink()
        sync_folder(self.folder)
        (self.folder / journal.FILE).unlink()  # last: its absence says all is there
        _give_name(self.folder, self._target)
        return PackedStore.open(self._target)

    def _is_done(self, job: Job) -> bool:
        if job.file not in self.journal.sealed and job.name not in self.journal.done:
            return False
        if not self._is_whole(job.file):
            raise CheckpointError(f"{self.folder} has lost its {job.file}", f"moecli rm {self.folder}, and begin again")
        return True

    def _is_whole(self, name: str) -> bool:
        path = self.folder / name
        return path.is_file() and path.stat().st_size == self._layout.sizes[name]

    def _write(self, name: str, offset: int, data: memoryview) -> None:
        if name not in self._files:
            self._files[name] = self._open(name)
        file = self._files[name]
        file.seek(offset)
        while data:
            data = data[file.write(data) :]

    def _open(self, name: str) -> FileIO:
        """The file at its full size with its header; what is not written yet takes no room on most disks."""
        whole = self._is_whole(name)
        file = (self.folder / name).open("r+b" if whole else "w+b", buffering=0)
        file.truncate(self._layout.sizes[name])
        file.write(self._layout.header(name))
        return file

    def _copy(self, name: str, path: Path) -> FileChecksums:
        copy = self.folder / name
        if path != copy:  # else it was fetched to its place, and a cut while it is written again could spoil it
            copy.write_bytes(path.read_bytes())
            _sync(copy)
        return file_checksums(copy)


def _give_name(partial: Path, target: Path) -> None:
    sync_folder(partial)
    partial.rename(target)
    (target / journal.LOCK).unlink()
    sync_folder(target.parent)


def _plan(layout: StoreLayout, origin: Origin) -> dict[str, Any]:
    """What unfinished work must agree in to be gone on with."""
    formats = {"dtype": layout.dtype, "compute": layout.compute, "roles": dict(layout.roles)}
    return {"schema": manifest.SCHEMA, "moecli_version": __version__, "origin": asdict(origin)} | formats


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
