"""Direct reads and what is done where a file system refuses them, on real files."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from moecli.errors import CheckpointError
from moecli.experts.arena import Arena
from moecli.experts.readers import File, PendingRead, Range, Readers
from moecli.store.expert_record import PAGE

KERNEL = Path("/proc/version")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "experts"
    file.write_bytes(os.urandom(4 * PAGE))
    return file


def test_what_cannot_be_read_directly_is_read_through_the_page_cache(path: Path) -> None:
    """Off the pages, which file systems refuse for a direct read; later reads of the file go on so."""
    whole, readers = path.read_bytes(), Readers(1)
    for offset, size in ((7, 1000), (0, 2 * PAGE), (PAGE + 1, 2 * PAGE)):
        target = bytearray(size)
        pending = readers.read([Range(path, offset, memoryview(target))])
        assert pending.done.wait(20)
        pending.check()
        assert target == whole[offset : offset + size]
    readers.close()


def test_long_ranges_are_read_in_segments(path: Path) -> None:
    """Several at once, of one file; that direct reads are refused is news to all threads."""
    path.write_bytes(whole := os.urandom(5 * 2**20))
    places = ((PAGE, 2 * 2**20 + PAGE), (3 * 2**20, 2**21))
    for _ in range(20):
        targets, readers = [bytearray(size) for _, size in places], Readers()
        pending = readers.read(
            Range(path, offset, memoryview(target)) for (offset, _), target in zip(places, targets, strict=True)
        )
        assert pending.done.wait(20)
        pending.check()
        assert targets == [whole[offset : offset + size] for offset, size in places]
        readers.close()


@pytest.mark.skipif(not KERNEL.exists(), reason="needs a file system without direct reads")
def test_a_file_that_cannot_be_opened_for_direct_reads_is_read_through_the_page_cache() -> None:
    target, whole = bytearray(PAGE), KERNEL.read_bytes()
    File(KERNEL).read(0, memoryview(target)[: len(whole) + 1])
    assert target[: len(whole)] == whole


def test_any_other_failure_is_none_of_direct_reading(path: Path) -> None:
    """Nothing is opened once more and tried in another way."""
    with pytest.raises(FileNotFoundError) as missing:
        File(path.with_name("another"))
    assert missing.value.__context__ is None
    file = File(path)
    with path.open("ab") as writer:
        os.dup2(writer.fileno(), file._descriptor)
    with pytest.raises(OSError) as caught:
        file.read(0, memoryview(bytearray(PAGE)))
    assert caught.value.errno == errno.EBADF  # a descriptor that only writes
    os.close(file._descriptor)


@pytest.mark.parametrize(("size", "segments"), [(1, 1), (2**20, 1), (2**20 + 1, 2), (5 * 2**19, 3)])
def test_a_thread_reads_a_mebibyte_at_a_time(size: int, segments: int, path: Path) -> None:
    path.write_bytes(whole := os.urandom(PAGE + size))
    read: list[tuple[int, int]] = []

    class Noting(Readers):
        def _read(self, segment: Range, pending: PendingRead) -> None:
            read.append((segment.offset, len(segment.target)))
            super()._read(segment, pending)

    readers, target, arrived = Noting(1), bytearray(size), list[PendingRead]()
    pending = readers.read([Range(path, PAGE, memoryview(target))], arrived.append)
    assert pending.done.wait(20)
    readers.close()
    assert read == [(PAGE + n * 2**20, min(2**20, size - n * 2**20)) for n in range(segments)]
    assert target == whole[PAGE:] and arrived == [pending] and pending.left == 0


def test_a_read_is_over_once_and_its_first_failure_counts() -> None:
    told: list[PendingRead] = []
    pending = PendingRead(3, told.append)
    pending.check()
    pending.finish(None)
    pending.finish(OSError(errno.EIO, "the first", "file"))
    assert not told and not pending.done.is_set()
    pending.finish(OSError(errno.EACCES, "the second", "file"))
    assert told == [pending] and pending.done.is_set()
    with pytest.raises(CheckpointError, match="file cannot be read: the first"):
        pending.check()
    PendingRead(1).finish(None)


def test_after_a_failure_the_rest_is_not_read(path: Path, tmp_path: Path) -> None:
    opened: list[Path] = []

    class Noting(Readers):
        def _file(self, path: Path) -> File:
            opened.append(path)
            return super()._file(path)

    readers, missing = Noting(1), tmp_path / "none"
    ranges = [Range(each, 0, memoryview(bytearray(PAGE))) for each in (path, missing, path, path)]
    pending = readers.read(ranges)
    assert pending.done.wait(20) and opened == [path, missing]
    with pytest.raises(CheckpointError, match=f"{missing} cannot be read"):
        pending.check()
    readers.close()


def test_four_threads_that_end_when_they_are_told_to(path: Path) -> None:
    before = set(threading.enumerate())
    readers = Readers()
    threads = set(threading.enumerate()) - before
    assert sorted(each.name for each in threads) == [f"reader-{number}" for number in range(4)]
    assert all(each.daemon for each in threads)  # none outlives the program
    pending = readers.read([Range(path, 0, memoryview(bytearray(4 * PAGE)))])
    readers.close()
    for each in threads:
        each.join(20)
    assert not any(each.is_alive() for each in threads) and pending.done.is_set()


def test_a_file_is_opened_once_for_all_threads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    system = os.open
    monkeypatch.setattr(os, "open", lambda file, flags: (opened.append(flags), system(file, flags))[1])
    readers = Readers(2)
    for _ in range(3):
        arena = Arena(1, 2 * PAGE)
        assert readers.read([Range(path, PAGE, arena.memory(0))]).done.wait(20)
        assert bytes(arena.memory(0)) == path.read_bytes()[PAGE : 3 * PAGE]
    readers.close()
    assert opened and all(flags & os.O_ACCMODE == os.O_RDONLY for flags in opened)
    assert len(opened) == (1 if opened[0] & os.O_DIRECT and _is_direct(path) else 2)


def _is_direct(path: Path) -> bool:
    """Whether this file system reads directly."""
    file, arena = File(path), Arena(1, PAGE)
    file.read(0, arena.memory(0))
    return bool(file._direct)


@pytest.mark.parametrize("direct", [True, False])
def test_what_came_through_the_page_cache_is_not_kept_there(
    direct: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights would push everything else out of it. Of direct reads there is nothing to say."""
    given_up: list[tuple[int, int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *each: given_up.append(each))
    file, arena = File(path), Arena(1, 2 * PAGE)
    if not direct:
        file._gives_up(file._descriptor)
    file.read(PAGE, arena.memory(0))
    assert bytes(arena.memory(0)) == path.read_bytes()[PAGE : 3 * PAGE]
    expected = [(file._descriptor, PAGE, 2 * PAGE, os.POSIX_FADV_DONTNEED)]
    assert given_up == ([] if file._direct else expected)
    assert direct or not file._direct


@pytest.mark.parametrize(
    ("held", "asked", "fails"), [(0, 1, False), (PAGE + 5, 2, False), (PAGE, 2, True), (1, 2, True)]
)
def test_a_file_may_end_within_its_last_page_and_not_before(held: int, asked: int, fails: bool, tmp_path: Path) -> None:
    """`held` bytes of `asked` pages, direct or not. Of an empty file not even the first page is there."""
    (tmp_path / "short").write_bytes(bytes(range(251)) * 100)
    os.truncate(tmp_path / "short", held)
    for direct in (True, False):
        file, arena = File(tmp_path / "short"), Arena(1, asked * PAGE)
        if not direct:
            file._gives_up(file._descriptor)
        if fails or not held:
            with pytest.raises(OSError, match="the file is cut short") as cut:
                file.read(0, arena.memory(0))
            assert cut.value.errno == errno.ENODATA
        else:
            file.read(0, arena.memory(0))
            assert bytes(arena.memory(0)[:held]) == (tmp_path / "short").read_bytes()
