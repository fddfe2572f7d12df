"""The two streams: data to stdout and nothing else there, all talk to stderr."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from typing import Any

from moecli import settings
from moecli.errors import MoecliError, UsageError


def prepare_streams() -> None:
    """Never fail on a character that a terminal or pipe cannot show, or on bytes that are not UTF-8."""
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace"), (sys.stdin, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def write(text: str) -> None:
    """Data, at once, so that a reader sees each piece as it comes."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_json(document: Any) -> None:
    """One JSON document, and the only thing on stdout."""
    write(json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def say(text: str) -> None:
    """Talk: statistics, warnings, notes."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextlib.contextmanager
def status(text: str, quiet: bool = False) -> Iterator[None]:
    """A line that stands on a terminal while something takes time, and is gone after."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    sys.stderr.write(text)
    sys.stderr.flush()
    try:
        yield
    finally:
        sys.stderr.write("\r" + " " * len(text) + "\r")
        sys.stderr.flush()


def report(error: MoecliError) -> int:
    """Show an explained failure; returns its exit code."""
    if settings.debug():
        import traceback

        traceback.print_exception(error)
    say(f"error: {error.message}")
    if error.hint:
        say(f"hint: {error.hint}")
    return error.exit_code


def clean(text: str) -> str:
    """Command-line bytes that are not UTF-8 arrive as lone surrogates; replace them as stdin does."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_stdin() -> str:
    """All of a piped stdin; empty on a terminal or where there is none."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return ""
    try:
        return sys.stdin.read()
    except OSError as error:
        raise UsageError(f"stdin cannot be read: {error.strerror}") from error
