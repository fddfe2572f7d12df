"""Processes beside the test: run to their end or to a signal, and waited for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from moecli.errors import MoecliError


def in_child(action: Callable[[], object], kill_after: float | None = None) -> int | str:
    """Run in a process of its own: 0, the message of its failure, or minus the signal that ended it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            if kill_after is not None:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process at once, as SIGKILL does
                signal.setitimer(signal.ITIMER_REAL, kill_after)
            action()
            status = 0
        except MoecliError as error:
            os.write(writing, error.message.encode())
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123
        message = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return message or code


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)
