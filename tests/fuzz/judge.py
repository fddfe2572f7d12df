"""Runs the program, or readers of it alone, in this process and says what was wrong with how that ended."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
import traceback
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType

import typer.main

from moecli.cli import app
from moecli.errors import MoecliError, lines_printable

SECONDS = 5
GROWTH = 500 << 20
_CODES = {0, 1, 2, 3}
typer.main.get_command = cache(typer.main.get_command)  # made anew it takes longer than most cases


class Hang(BaseException):
    """A case that took too long."""


@dataclass(frozen=True)
class Verdict:
    """How one run ended."""

    code: int | None
    seconds: float
    growth: int  # bytes that memory grew by at its highest
    shown: str  # stdout and stderr
    faults: tuple[str, ...]


class _Screen(io.BytesIO):
    """A terminal, as far as the program can tell."""

    def isatty(self) -> bool:
        return True

    def close(self) -> None:
        """It outlives the streams that are laid over it."""


def judge(run: Sequence[str] | Callable[[], object], seconds: float = SECONDS) -> Verdict:
    """`moecli RUN` on a terminal without colours and an empty stdin, or what only reads a file: watched."""
    arguments = () if callable(run) else run
    told = _Screen()
    screen = io.TextIOWrapper(told, encoding="utf-8", write_through=True)
    before, kept = _resident(), (sys.argv, sys.stdin, sys.stdout, sys.stderr)
    _forget_peak()
    sys.argv = ["moecli", *arguments]
    sys.stdin, sys.stdout, sys.stderr = io.TextIOWrapper(io.BytesIO()), screen, screen
    started, code, faults = time.monotonic(), None, []
    alarm = signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)  # again and again: somebody may catch the first
    try:
        _read(run) if callable(run) else app.dispatch()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    except BaseException:
        faults.append(traceback.format_exc(limit=-6))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        sys.argv, sys.stdin, sys.stdout, sys.stderr = kept
    took, growth = time.monotonic() - started, max(0, _peak() - before)
    shown = told.getvalue().decode("utf-8", "backslashreplace")
    if took > seconds and not faults:
        faults.append(f"took {took:.1f} s")
    if growth > GROWTH:
        faults.append(f"grew by {growth >> 20} MiB")
    if "Traceback (most recent" in shown:
        faults.append("a traceback on the screen")
    if code is not None and code not in _CODES:
        faults.append(f"exit code {code}")
    asked = code == 3 and "--check" in arguments
    if code and not asked and not any(line.startswith("error: ") for line in shown.splitlines()):
        faults.append(f"exit code {code} without an error")
    if strange := {letter for letter in shown if _steers(letter)}:
        faults.append(f"a terminal would obey {sorted(strange)!r}")
    return Verdict(code, took, growth, shown, tuple(faults))


def _read(read: Callable[[], object]) -> None:
    """End as a command would."""
    try:
        read()
    except MoecliError as error:
        print(lines_printable(f"error: {error.message}"))
        sys.exit(1)


def _steers(letter: str) -> bool:
    """Controls, line separators, halves of characters, and what turns the direction of writing."""
    if letter.isprintable() or letter in "\n\r\t":
        return False
    turns = "\u202a" <= letter <= "\u202e" or "\u2066" <= letter <= "\u2069"
    return turns or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")


def _hang(number: int, frame: FrameType | None) -> None:
    raise Hang


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    with open("/proc/self/status") as status:  # noqa: PTH123
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))


def _resident() -> int:
    with open("/proc/self/statm") as statm:  # noqa: PTH123
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
