"""The speed of a disk is measured, and nothing of that is left."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import moecli
from moecli.doctor import reading
from tests.support import stores

TINY = Path(moecli.__file__).parent / "tiny"
SMALL = 2**20


def test_a_file_is_written_read_and_gone(tmp_path: Path) -> None:
    found = reading.read_new_file(tmp_path, SMALL)
    assert found.bytes_per_s is not None and found.bytes_per_s > 1e6 and found.failure is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [0, 5000, SMALL // 2])
def test_a_disk_that_refuses_is_not_measured(tmp_path: Path, size: int) -> None:
    with largest_file(size):
        found = reading.read_new_file(tmp_path, SMALL)
    assert found.bytes_per_s is None and found.failure == "File too large"
    assert not list(tmp_path.iterdir())


def test_nor_is_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert reading.read_new_file(tmp_path / "none").failure == "No such file or directory"


def test_an_interrupted_measurement_leaves_nothing(tmp_path: Path) -> None:
    interrupted = 0
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for delay in (0.001, 0.003, 0.01, 0.03, 0.1):
            began = time.perf_counter()
            signal.setitimer(signal.ITIMER_REAL, delay)
            try:
                reading.read_new_file(tmp_path)
            except KeyboardInterrupt:
                interrupted += 1
                assert time.perf_counter() - began < 5
            assert not list(tmp_path.iterdir())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted >= 3


def test_a_packed_store_is_read_in_place(tmp_path: Path) -> None:
    folder = stores.packed(TINY, tmp_path / "store").folder
    found = reading.read_store(folder)
    assert found.bytes_per_s is not None and found.bytes_per_s > 1e5 and found.failure is None
    before = sorted(folder.iterdir())
    next(folder.glob("experts-*.safetensors")).unlink()
    broken = reading.read_store(folder)
    assert broken.bytes_per_s is None and broken.failure
    assert len(list(folder.iterdir())) == len(before) - 1


def test_direct_reads_are_tried(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert not reading.reads_directly(tmp_path / "empty") and not reading.reads_directly(tmp_path / "none")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """What a full disk is: writes beyond it fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
