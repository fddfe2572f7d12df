"""The memory of unfinished packing: which jobs are safely on disk. A kill at any moment loses little."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moecli.errors import CheckpointError, DiskError, json_object, unreadable
from moecli.store.filesystem import FULL, unwritable
from moecli.store.manifest import FileChecksums, read_checksums, read_origin

FILE = "journal"
LOCK = "lock"
_LONGEST_PLAN = 2**20


class Journal:
    """A plan, then one line per event, each synced; a last line that was cut off counts as never written.

    What it says is believed: a line is written only after its data were synced.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self._path = folder / FILE
        self.done: set[str] = set()  # jobs
        self.sealed: dict[str, FileChecksums] = {}  # files that are complete
        self.kept: set[str] = set()  # shards whose leftovers were put aside
        events = self._read(plan)
        if events is None:
            self._path.write_bytes(b"")
            self._append(dict(plan))
            sync_folder(folder)
        for event in events or []:
            self._apply(event)

    def add(self, *, done: Iterable[str] = (), kept: Iterable[str] = ()) -> None:
        """Jobs whose bytes are synced, shards whose leftovers are."""
        self._record({"done": sorted(done), "kept": sorted(kept)})

    def seal(self, file: str, checksums: FileChecksums) -> None:
        """A file that is complete and synced."""
        self._record({"sealed": file, "sums": asdict(checksums)})

    def _record(self, event: Mapping[str, Any]) -> None:
        self._append(event)
        self._apply(event)

    def _apply(self, event: Mapping[str, Any]) -> None:
        self.done.update(event.get("done", ()))
        self.kept.update(event.get("kept", ()))
        if "sealed" in event:
            self.sealed[event["sealed"]] = read_checksums(event["sums"])

    def _read(self, plan: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """The events after the plan, or None to start anew. CheckpointError if another plan is being worked on."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(self._path, error) from error
        events, end = _events(content)
        if end < len(content):
            os.truncate(self._path, end)
        if events and events[0] != plan:
            folder = self._path.parent
            raise CheckpointError(
                f"{folder} was begun from another source, or from this one before it changed, or by another moecli",
                f"moecli rm {folder}",
            )
        return events[1:] if events else None

    def _append(self, event: Mapping[str, Any]) -> None:
        with self._path.open("ab") as file:
            file.write(json.dumps(event).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """What the system says of a disk, as DiskError."""
    try:
        yield
    except BrokenPipeError:  # nobody reads our output any more: no disk
        raise
    except OSError as error:
        if error.errno in FULL:
            hint = "free some space and give the same command again: it goes on from there"
            raise DiskError(f"the disk of {folder} is full", hint) from error
        raise unwritable(folder, error) from error


def read_plan(folder: Path) -> Mapping[str, Any] | None:
    """What unfinished work in `folder` is to become; None if there is none, or it cannot be read."""
    try:
        with (folder / FILE).open("rb") as file:
            events, _ = _events(file.readline(_LONGEST_PLAN))
    except OSError:
        return None
    return events[0] if events else None


def occupied(path: Path) -> int:
    """What a file takes of its disk, holes left out; 0 if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return 0
    return min(status.st_size, getattr(status, "st_blocks", status.st_size) * 512)


def _events(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """The whole lines, as far as they can be believed, and where they end."""
    events: list[dict[str, Any]] = []
    end = 0
    with contextlib.suppress(CheckpointError, KeyError, TypeError, AttributeError):
        for line in content.splitlines(keepends=True):
            event = json_object(line, CheckpointError)
            if not line.endswith(b"\n"):
                break
            _check(event, is_plan=not events)
            events.append(event)
            end += len(line)
    return events, end


def _check(event: Mapping[str, Any], is_plan: bool) -> None:
    """KeyError, TypeError or AttributeError for what no Journal has written."""
    if is_plan:
        read_origin(event["origin"])
        words = [event["dtype"]]
    else:
        lists = [event.get("done", []), event.get("kept", [])]
        if not all(isinstance(each, list) for each in lists):
            raise TypeError("names are lists")
        words = [*lists[0], *lists[1], event.get("sealed", "")]
        if "sealed" in event:
            read_checksums(event["sums"])
    if not all(isinstance(word, str) for word in words):
        raise TypeError("names are text")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only process that works in `folder`, which is made. The lock goes with the process, however it ends."""
    make_folder(folder)
    descriptor = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR)
    try:
        if not _try_lock(descriptor) or not _is_at(descriptor, folder / LOCK):
            raise DiskError(f"another moecli is packing into {folder}", "wait for it, or stop it")
        yield
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """A folder whose name is safe, and those above it that are not there either."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in new:
        sync_folder(each.parent)


def sync_folder(folder: Path) -> None:
    """Make names durable; where folders cannot be opened that is the system's business."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the file is still there by that name: its folder may have become a finished store meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True
