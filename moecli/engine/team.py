"""The threads that compute: fewer while other programs want the processors."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import psutil
import torch

_INTERVAL = 0.25  # seconds between looks; the system counts in hundredths


@dataclass(frozen=True, slots=True)
class _Look:
    """Seconds so far: of the clock, of processors that were idle, of this process on processors."""

    clock: float
    idle: float
    own: float


class Team:
    """torch's threads, which are also those of the native kernels: `most`, or as many as others leave processors.

    Threads wait for each other after every product, so one that has to share its processor holds up all: beside one
    busy program two threads on two processors are slower than one. No result depends on how many there are.
    """

    def __init__(self, most: int, adjusts: bool = True) -> None:
        """Unless it `adjusts`, there are `most` whatever others do."""
        self.most = self.fewest = most
        self._adjusts = adjusts and most > 1
        self._last = _look()
        torch.set_num_threads(most)

    def begin(self) -> None:
        """Of an answer: `fewest` is counted from here."""
        self.fewest = min(self.most, torch.get_num_threads())

    def adjust(self) -> None:
        """To be called often: looks a few times a second how many processors were idle or this process's own."""
        if not self._adjusts or time.perf_counter() - self._last.clock < _INTERVAL:
            return
        last, now = self._last, _look()
        self._last = now
        if now.idle == 0:  # a system that does not tell
            return
        free = (now.idle - last.idle + now.own - last.own) / (now.clock - last.clock)
        threads = min(self.most, max(1, round(free)))
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        self.fewest = min(self.fewest, threads)


def _look() -> _Look:
    times = psutil.cpu_times(percpu=True)
    if hasattr(os, "sched_getaffinity"):
        usable = os.sched_getaffinity(0)
        times = [each for number, each in enumerate(times) if number in usable] or times
    idle = sum(each.idle + getattr(each, "iowait", 0.0) for each in times)
    return _Look(time.perf_counter(), idle, time.process_time())
