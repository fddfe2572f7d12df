"""How often and how long to wait for a Hub that is busy or a connection that was lost."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from moecli.errors import NetworkError
from moecli.hub.failures import HubBusy

Result = TypeVar("Result")
Tell = Callable[[str, float], None]  # why, and for how many seconds

_WORTH_TELLING = 3.0  # seconds that were lost or will be; what the Hub asks for is always told
_PROGRESS = 1 << 16  # bytes; a server that gives a few at a time has failed all the same


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Failures in a row that are borne, and the waits between them, doubling; in seconds."""

    attempts: int = 8
    first_wait: float = 0.5
    longest_wait: float = 30
    longest_asked: float = 600  # what the Hub may ask for; for more, somebody should come back later

    def wait(self, failures: int, asked: float | None) -> float:
        """Half of it is chance, so that many who were refused together do not come back together."""
        if asked is not None:
            return asked + self.first_wait * random.random()
        doubled: float = self.first_wait * 2 ** (failures - 1)
        return min(self.longest_wait, doubled) * (0.5 + random.random())


class Stopped(Exception):
    """Somebody else's failure or Ctrl-C ended this."""


def retry(
    action: Callable[[], Result],
    policy: RetryPolicy,
    progress: Callable[[], int] = lambda: 0,
    tell: Tell | None = None,
    stop: threading.Event | None = None,
) -> Result:
    """Do it until it succeeds. HubBusy after too many failures in a row; what makes progress has not failed.

    Each wait that can be noticed is told. NetworkError where the Hub asks for a longer one than the policy bears.
    """
    stop = stop or threading.Event()
    failures, reached = 0, progress()
    while True:
        began = time.monotonic()
        try:
            return action()
        except HubBusy as error:
            failures = 1 if progress() - reached >= _PROGRESS else failures + 1
            reached = progress()
            if failures >= policy.attempts:
                raise
            if error.wait is not None and error.wait > policy.longest_asked:
                raise NetworkError(
                    f"{error.message} and asks to wait {error.wait:,.0f} s", "repeat the command after that time"
                ) from error
            seconds = policy.wait(failures, error.wait)
            if tell is not None and (error.wait or max(seconds, time.monotonic() - began) >= _WORTH_TELLING):
                tell(error.message, seconds)
        if stop.wait(seconds):
            raise Stopped
