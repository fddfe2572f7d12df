"""One file, whole and verified or not at all: resumed where it was cut, checked against its size and hash."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from moecli.errors import CheckpointError, DiskError, MoecliError
from moecli.hub import client
from moecli.hub.cache import UNFINISHED, blob_hash
from moecli.hub.failures import HubBusy
from moecli.hub.manifest import RemoteFile
from moecli.hub.retry import RetryPolicy, Stopped, retry
from moecli.store.filesystem import FULL, unwritable
from moecli.units import format_bytes

_READ = 1 << 20


class Watcher(Protocol):
    """Somebody who shows progress; called from several threads."""

    def advance(self, file: RemoteFile, size: int) -> None:
        """So many bytes have arrived and are on the disk."""

    def found(self, file: RemoteFile, size: int) -> None:
        """So many were there already; fewer than none when they are refused."""

    def wait(self, file: RemoteFile, why: str, seconds: float | None) -> None:
        """Nothing moves for a while; None: nobody knows for how long."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """What all files of one download share."""

    repo: str
    commit: str
    watcher: Watcher
    policy: RetryPolicy
    stop: threading.Event

    def fetch(self, file: RemoteFile, blob: Path) -> None:
        """Bring the file to `blob`. Bytes with the wrong hash are removed and fetched once more.

        CheckpointError if they are wrong again, NetworkError, DiskError; what arrived in order is kept for next time.
        """
        for _ in range(2):
            with _Partial(blob, file, self.watcher, self.stop) as part:
                self._complete(part)
                if part.settled():
                    return
        raise CheckpointError(
            f"{file.name} of {self.repo} arrives damaged: its bytes do not have the hash that the Hub lists",
            "nothing of it was kept; try again later",
        )

    def _complete(self, part: _Partial) -> None:
        retry(
            lambda: self._connect(part),
            self.policy,
            progress=lambda: part.size,
            tell=lambda why, seconds: self.watcher.wait(part.file, why, seconds),
            stop=self.stop,
        )

    def _connect(self, part: _Partial) -> None:
        """Take what one connection gives. HubBusy when it ends too early.

        No If-Range: the commit in the address and the final hash say more than the ETag of a mirror, which is its own.
        """
        file = part.file
        if part.size == file.size:
            return
        with client.get(self.repo, self.commit, file.name, (part.size, None)) as answer:
            self._check(answer, file)
            skip = part.size if answer.status == 200 else 0
            for chunk in answer.chunks():
                fresh = chunk[skip:]
                skip -= len(chunk) - len(fresh)
                if part.size + len(fresh) > file.size:
                    raise _lie(file, "goes on after")
                part.append(fresh)
        if part.size < file.size:
            raise HubBusy(f"{file.name} was cut at {format_bytes(part.size)}", "try again later")

    def _check(self, answer: client.Answer, file: RemoteFile) -> None:
        """Whether this answer can be the file that was listed."""
        if answer.status == 416:
            raise _lie(file, "ends before")
        if answer.status == 403 and answer.redirected:  # a signed address that has expired
            raise HubBusy(f"the host of {file.name} answers HTTP 403", "try again later")
        if answer.status not in (200, 206):
            raise client.refusal(answer, self.repo, self.commit, file.name)
        if answer.first("x-linked-etag").strip('W/"') not in ("", file.hash):
            raise CheckpointError(f"{file.name} has another hash than the Hub has listed", "try again later")
        if answer.file_size not in (None, file.size):
            raise _lie(file, f"has {answer.file_size:,} bytes, not")


def _lie(file: RemoteFile, problem: str) -> MoecliError:
    return CheckpointError(f"{file.name} {problem} the {file.size:,} bytes that the Hub announced")


class _Partial:
    """The bytes that are here so far, appended to, and their running hash."""

    def __init__(self, blob: Path, file: RemoteFile, watcher: Watcher, stop: threading.Event) -> None:
        self.file = file
        self.size = 0
        self._blob = blob
        self._path = blob.with_name(blob.name + UNFINISHED)
        self._watcher = watcher
        self._stop = stop
        self._hash = blob_hash(file.hash, file.size)

    def __enter__(self) -> _Partial:
        try:
            self._out = self._path.open("ab", buffering=0)
            if self._out.tell() > self.file.size:
                self._out.truncate(0)
            with self._path.open("rb", buffering=0) as earlier:
                while chunk := earlier.read(_READ):
                    self._count(chunk, self._watcher.found)
        except OSError as error:
            raise self._trouble(error) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()

    def append(self, chunk: bytes) -> None:
        """Write at once, so that whatever ends this process leaves all that arrived."""
        rest = memoryview(chunk)
        while rest:
            try:
                written = self._out.write(rest)
            except OSError as error:
                raise self._trouble(error) from error
            self._count(rest[:written], self._watcher.advance)
            rest = rest[written:]

    def settled(self) -> bool:
        """Make it the blob, safely on the disk, if these are the announced bytes; else remove it."""
        try:
            if self._hash.hexdigest() == self.file.hash:
                os.fsync(self._out.fileno())
                self._path.replace(self._blob)
                return True
            self._path.unlink()
        except OSError as error:
            raise self._trouble(error) from error
        self._watcher.found(self.file, -self.size)
        return False

    def _count(self, chunk: bytes | memoryview, report: Callable[[RemoteFile, int], None]) -> None:
        if self._stop.is_set():
            raise Stopped
        self._hash.update(chunk)
        self.size += len(chunk)
        report(self.file, len(chunk))

    def _trouble(self, error: OSError) -> MoecliError:
        if error.errno not in FULL:
            return unwritable(self._path, error)
        lack = format_bytes(self.file.size - self.size)
        return DiskError(
            f"the disk is full: {lack} of {self.file.name} do not fit into {self._path.parent}",
            "make room and repeat the command: it goes on where it stopped",
        )
