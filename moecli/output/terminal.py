"""The two streams: data to stdout and nothing else there, all talk to stderr."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from moecli import settings
from moecli.errors import Declined, MoecliError, UsageError, escaped, json_text, lines_printable, printable
from moecli.store import filesystem
from moecli.text import incoming
from moecli.units import format_bytes

# What of a text would steer a terminal: controls but line end and tab (C1 are escape sequences in one byte), the breaks
# and overrides that make it stand elsewhere than it is, halves of characters. Joiners and marks that scripts need stay.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufff9-\ufffb]")

_HELD = "\x1f"  # for a space at which no line ends; nothing that is shown has one


class _Stream(io.TextIOWrapper):
    """stdout or stderr: what is written goes through `clean`, at once; what cannot be written goes to `failed`.

    `styled` is the same stream for what is clean already, and has colours.
    """

    def __init__(
        self, standard: TextIO, errors: str, clean: Callable[[str], str] | None, failed: Callable[[OSError], None]
    ) -> None:
        super().__init__(standard.buffer, standard.encoding, errors, line_buffering=True)
        self._standard = standard  # would close the buffer when it goes
        self._clean, self._failed = clean, failed
        self.styled = self if clean is None else _Stream(standard, errors, None, failed)
        self.used = False  # whether anything was written

    def write(self, text: str) -> int:
        self.used = True
        with self._watched():
            super().write(text if self._clean is None else self._clean(text))
        return len(text)

    def flush(self) -> None:
        with self._watched():
            super().flush()

    def write_bytes(self, content: bytes) -> None:
        """What is no text."""
        with self._watched():
            super().flush()
            self.buffer.write(content)
            self.buffer.flush()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            void = os.open(os.devnull, os.O_WRONLY)  # takes what is still buffered
            os.dup2(void, self.fileno())
            os.close(void)
            self._failed(error)


def prepare_streams() -> None:
    """Before anything else: three descriptors that are open, and streams that suit people and pipes.

    stderr is for people, and its loss stops nothing. stdout is for people where it is a terminal, and true elsewhere;
    MoecliError says that it cannot be written, BrokenPipeError that its reader has gone.
    """
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):  # writing to no stdout must fail
        _open_if_closed(descriptor, mode)
    sys.stdin = sys.stdin or os.fdopen(0)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    stdout, stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")
    sys.stdout = _Stream(stdout, "replace", steerless if stdout.isatty() else None, _stdout_lost)
    sys.stderr = _Stream(stderr, "backslashreplace", lines_printable, lambda _: None)


def _open_if_closed(descriptor: int, mode: int) -> None:
    """A closed descriptor would become that of the next file which is opened, and that file get our output."""
    try:
        os.fstat(descriptor)
    except OSError:
        void = os.open(os.devnull, mode)
        os.dup2(void, descriptor)
        if void != descriptor:
            os.close(void)


def _stdout_lost(error: OSError) -> None:
    if error.errno == errno.EPIPE:
        raise error
    raise MoecliError(f"stdout cannot be written: {error.strerror or error}") from error


def steerless(text: str) -> str:
    """What a model said, for a terminal: every language, nothing that it would obey."""
    return _STEERING.sub(lambda found: escaped(found[0]), text.replace("\r\n", "\n"))


def styled(stream: TextIO) -> TextIO:
    """The stream for text that rich has cleaned and coloured, or that moves the cursor itself."""
    return getattr(stream, "styled", stream)


def write(text: str) -> None:
    """Data, at once, so that a reader sees each piece as it comes."""
    sys.stdout.write(text)
    sys.stdout.flush()


def colours(stream: TextIO) -> bool:
    """Whether text on this stream is coloured: on a terminal, unless NO_COLOR, TERM=dumb or --no-color say no."""
    if settings.read("NO_COLOR") or "--no-color" in sys.argv:
        return False
    return bool(settings.read("FORCE_COLOR")) or (stream.isatty() and settings.read("TERM") != "dumb")


def write_styled(text: Callable[[bool], str]) -> None:
    """A text that is told whether it may have colours, on stdout."""
    stream = styled(sys.stdout)
    stream.write(text(colours(sys.stdout)))
    stream.flush()


def write_file(content: bytes, file: Path | None) -> None:
    """The bytes of a file that a user named, into it; without a name to stdout, where a terminal gets clean text."""
    if file is not None:
        filesystem.write(file, [content])
    elif sys.stdout.isatty():
        write(os.fsdecode(content))
    elif isinstance(sys.stdout, _Stream):
        sys.stdout.write_bytes(content)
    else:
        sys.stdout.buffer.write(content)


def write_path(path: Path) -> None:
    """A line with a path, in its own bytes where no person reads it."""
    write_file(os.fsencode(f"{path}\n"), None)


def write_json(document: Any, file: Path | None = None) -> None:
    """One JSON document, and the only thing on stdout; or into a file."""
    text = f"{json_text(document, indent=2)}\n"
    if file is None:
        write(text)
    else:
        write_file(text.encode(), file)


def say(text: str) -> None:
    """Lines of talk on stderr: statistics, warnings, notes."""
    for line in lines_printable(text).split("\n"):
        sys.stderr.write(f"{fitted(line, sys.stderr)}\n")
    sys.stderr.flush()


def fitted(line: str, stream: TextIO) -> str:
    """A line, for a terminal that is narrower broken between words, under what stands beside its label.

    A command stays in one piece, to be copied.
    """
    width = shutil.get_terminal_size().columns
    if len(line) <= width or not stream.isatty():
        return line
    indent = next(found[0] for pattern in (r" *\S+(?: \S+)*? {2,}", " *") if (found := re.match(pattern, line)))
    hanging = " " * len(indent) if len(indent) <= width // 2 else ""
    pieces = re.sub(r"\bmoecli .*", lambda found: found[0].replace(" ", _HELD), line)
    lines = textwrap.wrap(pieces, width, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace(_HELD, " ")


def say_written(file: Path) -> None:
    """That a file is there now, and how large it is."""
    say(f"wrote {printable(str(file))} ({format_bytes(file.stat().st_size)})")


class Line:
    """A line that stands on a terminal's stderr for the time of a `with` block; elsewhere nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self._wanted = not quiet and sys.stderr.isatty()
        self._width = 0

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, *texts: str) -> None:
        """Show the first of these texts that fits, else the beginning of the last, instead of what stood there."""
        if self._wanted:
            room = shutil.get_terminal_size().columns - 1
            whole = (shown for text in texts if len(shown := printable(text)) <= room)
            shown = next(whole, printable(texts[-1], room))
            self._put("\r" + shown.ljust(self._width))
            self._width = len(shown)

    def clear(self) -> None:
        """Nothing stands there any more."""
        if self._width:
            self._put("\r" + " " * self._width + "\r")
            self._width = 0

    def _put(self, text: str) -> None:
        stream = styled(sys.stderr)
        stream.write(text)
        stream.flush()


def say_notes(notes: Iterable[str]) -> None:
    """What was left out of a model's files or overruled, a line each."""
    for note in notes:
        say(f"note: {printable(note)}")


@contextlib.contextmanager
def status(text: str, quiet: bool = False) -> Iterator[None]:
    """A Line that says `text` for the time of a block."""
    with Line(quiet) as line:
        line.show(text)
        yield


def can_ask() -> bool:
    """Whether somebody sits at a terminal who can be asked."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str, yes: bool, default: bool = False) -> None:
    """Ask on a terminal; Declined if the answer is not yes. Without a terminal it takes --yes.

    `default`: what an empty line means.
    """
    if yes:
        return
    if not can_ask():
        raise UsageError(f"cannot ask '{question}': no terminal", "add --yes to go on without being asked")
    asked = f"{printable(question)} {'[Y/n]' if default else '[y/N]'}"
    sys.stderr.write(textwrap.fill(asked, shutil.get_terminal_size().columns - 1, break_long_words=False) + " ")
    sys.stderr.flush()
    answer = sys.stdin.readline()
    if answer.strip().casefold() not in ({"y", "yes", ""} if default and answer else {"y", "yes"}):
        raise Declined("nothing was done")


def report(error: MoecliError) -> int:
    """Show an explained failure, with --json as a document, too, unless there is one; returns its exit code."""
    if settings.debug():
        import traceback

        traceback.print_exception(error)
    if isinstance(error, Declined):
        say(error.message)
    else:
        _say_labelled("error", "1;31", error.message)
    if error.hint:
        _say_labelled("hint", "1;36", error.hint)
    options = sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]
    if "--json" in options and not getattr(sys.stdout, "used", False):
        from moecli.output.json import error as documents

        write_json(documents.document(error))
    return error.exit_code


def _say_labelled(label: str, style: str, text: str) -> None:
    stream, shown = styled(sys.stderr), fitted(f"{label}: {printable(text)}", sys.stderr)
    if colours(sys.stderr):
        shown = shown.replace(f"{label}:", f"\x1b[{style}m{label}:\x1b[0m", 1)
    stream.write(f"{shown}\n")
    stream.flush()


def clean(text: str) -> str:
    """Command-line bytes that are not UTF-8 arrive as lone surrogates; replace them as stdin does, and say so."""
    cleaned = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if cleaned != text:
        say(f"note: '{printable(text, 60)}' is not UTF-8: wrong bytes became U+FFFD")
    return cleaned


def read_stdin() -> str:
    """The text of a piped stdin; empty on a terminal."""
    if sys.stdin.isatty():
        return ""
    return incoming.decode(read_stdin_bytes(), "stdin", say).replace("\r\n", "\n")


def read_stdin_bytes() -> bytes:
    """All that is piped in. UsageError if it cannot be read."""
    try:
        return incoming.read(sys.stdin.buffer, "stdin")
    except OSError as error:
        raise UsageError(f"stdin cannot be read: {error.strerror}") from error
