"""What this machine gives to a process: threads, memory, and the most it has taken."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from moecli.errors import UsageError
from moecli.planning import cgroups, machine

MIB = 2**20


def test_as_many_threads_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.compute_threads(7) == 7
    monkeypatch.setenv("MOECLI_THREADS", "5")
    assert machine.compute_threads() == 5
    assert machine.compute_threads(3) == 3
    monkeypatch.setenv("MOECLI_THREADS", "1")
    assert machine.compute_threads() == 1


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "²"])
def test_a_number_of_threads_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOECLI_THREADS", text)
    with pytest.raises(UsageError, match=f"MOECLI_THREADS is '{text}'"):
        machine.compute_threads()
    assert machine.compute_threads(2) == 2


@pytest.mark.parametrize(
    ("cores", "usable", "quota", "threads"),
    [
        (8, 16, None, 8), (8, 4, None, 4), (None, 6, None, 6), (8, 16, 2.0, 2), (8, 16, 2.1, 3), (8, 16, 0.2, 1),
        (8, 16, 99.0, 8), (1, 1, None, 1),
    ],
)  # fmt: skip
def test_a_thread_for_each_core_that_it_may_use(cores, usable, quota, threads, monkeypatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(usable))
    monkeypatch.setattr(cgroups, "cpu_quota", lambda: quota)
    assert machine.compute_threads() == threads


@pytest.mark.parametrize(
    ("available", "room", "free"),
    [
        (40 * 2**30, None, 38 * 2**30), (2**30, None, 768 * MIB), (300 * MIB, None, 44 * MIB), (100 * MIB, None, 0),
        (40 * 2**30, 2**30, 768 * MIB), (2**30, 40 * 2**30, 768 * MIB), (40 * 2**30, 0, 0), (256 * MIB, None, 0),
    ],
)  # fmt: skip
def test_free_memory_leaves_a_margin_and_counts_what_is_held(available, room, free, monkeypatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    monkeypatch.setattr(cgroups, "memory_room", lambda: room)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda process: SimpleNamespace(rss=7 * MIB))
    assert machine.free_ram() == free + 7 * MIB


def _told_by_linux() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def test_the_peak_is_that_of_this_process() -> None:
    before = machine.peak_rss()
    assert 2**20 < psutil.Process().memory_info().rss <= before + MIB
    assert before <= 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + MIB
    if sys.platform == "linux":
        first, found, last = _told_by_linux(), machine.peak_rss(), _told_by_linux()
        assert first <= found <= last
    held = bytearray(before // 2) + b"1" * (64 * MIB + before // 2)
    assert machine.peak_rss() >= len(held)
    del held
    assert machine.peak_rss() >= before + 64 * MIB
