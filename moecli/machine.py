"""What this machine has and what this process uses: cores, memory, peak."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from moecli import settings
from moecli.errors import UsageError

_MARGIN = 256 * 2**20  # left to the rest of the machine
_NO_LIMIT = 2**60  # cgroup v1 writes a huge number where there is none


def compute_threads(asked: int | None = None) -> int:
    """Threads for arithmetic: as asked, as MOECLI_THREADS says, or one per physical core this process may use."""
    if asked is None and (text := settings.read("MOECLI_THREADS")):
        if not text.isdigit() or int(text) < 1:
            raise UsageError(f"MOECLI_THREADS is '{text}'", "it takes a number of threads, 1 or more")
        asked = int(text)
    if asked is not None:
        return asked
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or usable, usable))


def free_ram() -> int:
    """Bytes this process may hold in all: what the machine or its cgroup has free, less a margin, and its own."""
    free = psutil.virtual_memory().available
    room = _cgroup_room()
    free = free if room is None else min(free, room)
    return int(max(0, free - max(_MARGIN, free // 20)) + psutil.Process().memory_info().rss)


def _cgroup_room() -> int | None:
    """What is left below the tightest memory limit of this process's cgroups; None without one."""
    rooms = []
    for limit_file, usage_file, statistics in _cgroup_files():
        try:
            limit, usage = limit_file.read_text().strip(), int(usage_file.read_text())
            lines = dict(line.split() for line in statistics.read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit.isdigit() and int(limit) < _NO_LIMIT:
            rooms.append(int(limit) - usage + int(lines.get("inactive_file", 0)))
    return max(0, min(rooms)) if rooms else None


def _cgroup_files() -> Iterator[tuple[Path, Path, Path]]:
    """Limit, usage and statistics of this process's memory cgroup (v2 or v1) and of each of its parents."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = Path("/sys/fs/cgroup"), ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = Path("/sys/fs/cgroup/memory"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        here = root / path.lstrip("/")
        for folder in (here, *(parent for parent in here.parents if parent.is_relative_to(root))):
            yield folder / names[0], folder / names[1], folder / "memory.stat"


def peak_rss() -> int:
    """The most memory this process has had resident so far, in bytes; mapped files count while resident."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":  # getrusage would count what the parent held when it forked
        fields = Path("/proc/self/status").read_text()
        if match := re.search(r"^VmHWM:\s*(\d+) kB$", fields, re.MULTILINE):
            return int(match[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
