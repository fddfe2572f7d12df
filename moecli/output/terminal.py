"""The two streams: data to stdout and nothing else there, all talk to stderr."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from moecli import settings
from moecli.errors import Declined, MoecliError, UsageError, printable
from moecli.store.filesystem import unwritable


def prepare_streams() -> None:
    """Never fail on a character that a terminal or pipe cannot show, or on bytes that are not UTF-8."""
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace"), (sys.stdin, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def write(text: str) -> None:
    """Data, at once, so that a reader sees each piece as it comes."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_json(document: Any, file: Path | None = None) -> None:
    """One JSON document, and the only thing on stdout; or into a file."""
    text = json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    if file is None:
        write(text)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise unwritable(file, error) from error


def say(text: str) -> None:
    """A line of talk on stderr: statistics, warnings, notes."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def tell(notes: Iterable[str], quiet: bool = False) -> None:
    """What of a model is not as one might expect, a line each."""
    for note in () if quiet else notes:
        say(f"note: {printable(note)}")


class Line:
    """A line that stands on a terminal's stderr for the time of a `with` block; elsewhere nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self._wanted = not quiet and sys.stderr.isatty()
        self._width = 0

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, text: str) -> None:
        """Show this text instead of what stood there."""
        if self._wanted:
            sys.stderr.write("\r" + text.ljust(self._width))
            sys.stderr.flush()
            self._width = len(text)

    def clear(self) -> None:
        """Nothing stands there any more."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0


@contextlib.contextmanager
def status(text: str, quiet: bool = False) -> Iterator[None]:
    """A Line that says `text` for the time of a block."""
    with Line(quiet) as line:
        line.show(text)
        yield


def confirm(question: str, yes: bool) -> None:
    """Ask on a terminal; Declined if the answer is not yes. Without a terminal it takes --yes."""
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty() or not sys.stderr.isatty():
        raise UsageError(f"cannot ask '{question}': no terminal", "add --yes to go on without being asked")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().casefold() not in {"y", "yes"}:
        raise Declined("nothing was done")


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
