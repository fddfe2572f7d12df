"""Threads that read ranges of files straight into page-aligned memory, past the page cache where that is allowed."""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from moecli.errors import unreadable
from moecli.experts.two_disks import TwoDisks
from moecli.store.expert_record import PAGE

_LOG = logging.getLogger(__name__)
THREADS = 4  # of a disk
Work = Callable[[], None]
_SEGMENT = 2**20  # read by one thread at once: few records on their way still keep every thread busy


@dataclass(frozen=True, slots=True)
class Range:
    """`size` bytes at `offset` of a file, both in whole pages, and the memory they go to."""

    path: Path
    offset: int
    target: memoryview


@dataclass(slots=True, eq=False)
class PendingRead:
    """Some ranges on their way. When all are there, or one has failed, `done` is set and `arrived` called."""

    left: int
    arrived: Callable[[PendingRead], None] | None = None
    failure: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def finish(self, failure: BaseException | None) -> None:
        """One segment more has been read, or has failed."""
        with self._lock:
            self.left -= 1
            self.failure = self.failure or failure
            last = self.left == 0
        if last:
            self.done.set()
            if self.arrived is not None:
                self.arrived(self)

    def check(self) -> None:
        """CheckpointError if a read failed."""
        if isinstance(self.failure, OSError):
            raise unreadable(self.failure.filename, self.failure)
        if self.failure is not None:
            raise self.failure


_Task = tuple[Range | Work, PendingRead]


class Readers:
    """A pool; its threads wait while there is nothing to read, and end with the process or when it is closed.

    `copy` is a folder on another disk that holds the same files, and has as many threads of its own. Where a read of it
    fails, it is left alone from then on, and a warning says so.
    """

    def __init__(self, threads: int = THREADS, copy: Path | None = None) -> None:
        self._tasks: queue.SimpleQueue[_Task | None] | TwoDisks[_Task] = (
            queue.SimpleQueue() if copy is None else TwoDisks()
        )
        self._files: dict[Path, File] = {}
        self._lock = threading.Lock()
        self._threads = threads if copy is None else 2 * threads
        for number in range(self._threads):
            work: Callable[[], None] = self._work
            if isinstance(self._tasks, TwoDisks):
                disk = number % 2
                work = partial(self._share, self._tasks, disk, copy if disk else None)
            threading.Thread(target=work, name=f"reader-{number}", daemon=True).start()

    def close(self) -> None:
        """End the threads, after what was asked for."""
        for _ in range(self._threads):
            self._tasks.put(None)

    def read(self, ranges: Iterable[Range], arrived: Callable[[PendingRead], None] | None = None) -> PendingRead:
        """Begin to read. `arrived` is called on a reader's thread."""
        segments = [
            Range(each.path, each.offset + start, each.target[start : start + _SEGMENT])
            for each in ranges
            for start in range(0, len(each.target), _SEGMENT)
        ]
        pending = PendingRead(len(segments), arrived)
        for segment in segments:
            self._tasks.put((segment, pending))
        return pending

    def run(self, works: Collection[Work], arrived: Callable[[PendingRead], None]) -> PendingRead:
        """Begin to do what reads by itself; whatever goes wrong in it is the failure of the read."""
        pending = PendingRead(len(works), arrived)
        for work in works:
            self._tasks.put((work, pending))
        return pending

    def _share(self, tasks: TwoDisks[_Task], disk: int, folder: Path | None) -> None:
        """The work of a thread of one of two disks: the copy in `folder`, or the files as they are named."""
        while (task := tasks.get(disk)) is not None:
            work, pending = task
            began = time.perf_counter()
            if not isinstance(work, Range):
                self._run(work, pending)
            elif folder is None or pending.failure is not None:
                self._read(work, pending)
            else:
                try:
                    self._file(folder / work.path.name).read(work.offset, work.target)
                except OSError as error:
                    if tasks.leave(disk, task):
                        why = error.strerror or error
                        _LOG.warning("the copy in %s is left alone, for it cannot be read: %s", folder, why)
                    return
                pending.finish(None)
            tasks.done(disk, time.perf_counter() - began)
            del task, work, pending  # as below

    def _work(self) -> None:
        assert isinstance(self._tasks, queue.SimpleQueue)
        while (task := self._tasks.get()) is not None:
            work, pending = task
            if isinstance(work, Range):
                self._read(work, pending)
            else:
                self._run(work, pending)
            del task, work, pending  # they hold on to memory that may be given up before the next one comes

    def _run(self, work: Work, pending: PendingRead) -> None:
        failure: BaseException | None = None
        if pending.failure is None:
            try:
                work()
            except BaseException as error:  # raised again where the read is waited for
                failure = error
        pending.finish(failure)

    def _read(self, segment: Range, pending: PendingRead) -> None:
        failure: OSError | None = None
        if pending.failure is None:
            try:
                self._file(segment.path).read(segment.offset, segment.target)
            except OSError as error:
                failure = error
                failure.filename = str(segment.path)
        pending.finish(failure)

    def _file(self, path: Path) -> File:
        with self._lock:
            if path not in self._files:
                self._files[path] = File(path)
            return self._files[path]


class File:
    """One open file; direct reads until the file system refuses them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._direct = getattr(os, "O_DIRECT", 0)
        try:
            self._descriptor = os.open(path, os.O_RDONLY | self._direct)
        except OSError as error:
            if not self._direct or error.errno != errno.EINVAL:
                raise
            self._direct = 0
            self._descriptor = os.open(path, os.O_RDONLY)

    def read(self, offset: int, target: memoryview) -> int:
        """Fill `target`; returns how many bytes there were.

        A file that ends early is an error, but for the last page's padding.
        """
        done = 0
        while done < len(target):
            descriptor = self._descriptor
            try:
                count = os.preadv(descriptor, [target[done:]], offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._gives_up(descriptor):
                    raise
                continue
            if count == 0:
                if len(target) - done < PAGE:
                    break
                raise OSError(errno.ENODATA, "the file is cut short")  # no failure of the disk
            done += count
        if not self._direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, offset, len(target), os.POSIX_FADV_DONTNEED)
        return done

    def _gives_up(self, refused: int) -> bool:
        """Whether another descriptor can be tried: one without direct reads, which another thread may have opened."""
        with self._lock:
            if self._descriptor == refused and self._direct:
                self._descriptor, self._direct = os.open(self._path, os.O_RDONLY), 0
            return self._descriptor != refused
