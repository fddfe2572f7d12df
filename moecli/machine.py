"""What this machine has and what this process uses: cores, memory, peak."""

from __future__ import annotations

import os
import sys

import psutil

from moecli import settings
from moecli.errors import UsageError


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


def peak_rss() -> int:
    """The most memory this process has had resident so far, in bytes; mapped files count while resident."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
