"""What this machine has and what this process uses: cores, memory, peak."""

from __future__ import annotations

import math
import os
import re
import sys
from pathlib import Path

import psutil

from moecli import settings
from moecli.errors import UsageError
from moecli.planning import cgroups

_MARGIN = 256 * 2**20  # left to the rest of the machine


def compute_threads(asked: int | None = None) -> int:
    """Threads for arithmetic: as asked, as MOECLI_THREADS says, or one per physical core it may use."""
    if asked is None and (text := settings.read("MOECLI_THREADS")):
        if not text.isdecimal() or int(text) < 1:
            raise UsageError(f"MOECLI_THREADS is '{text}'", "it takes a number of threads, 1 or more")
        asked = int(text)
    if asked is not None:
        return asked
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroups.cpu_quota() or usable
    return max(1, min(psutil.cpu_count(logical=False) or usable, usable, math.ceil(quota)))


def free_ram() -> int:
    """Bytes this process may hold in all: what the machine or its cgroup has free, less a margin, and its own."""
    free = psutil.virtual_memory().available
    room = cgroups.memory_room()
    free = free if room is None else min(free, room)
    return int(max(0, free - max(_MARGIN, free // 20)) + psutil.Process().memory_info().rss)


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
