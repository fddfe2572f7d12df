"""Direct reads and what is done where a file system refuses them, on real files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from moecli.experts.readers import Range, Readers, _File
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
        assert pending.done.wait(5)
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
    _File(KERNEL).read(0, memoryview(target)[: len(whole) + 1])
    assert target[: len(whole)] == whole


def test_any_other_failure_is_none_of_direct_reading(path: Path) -> None:
    """Nothing is opened once more and tried in another way."""
    with pytest.raises(FileNotFoundError) as missing:
        _File(path.with_name("another"))
    assert missing.value.__context__ is None
    file = _File(path)
    with path.open("ab") as writer:
        os.dup2(writer.fileno(), file._descriptor)
    with pytest.raises(OSError) as caught:
        file.read(0, memoryview(bytearray(PAGE)))
    assert caught.value.errno == errno.EBADF  # a descriptor that only writes
    os.close(file._descriptor)
