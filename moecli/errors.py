"""Every failure a user or a file can cause: a sentence, a hint, an exit code; and what others wrote, made safe."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_DEEPEST = 64  # levels of JSON: every recursion over them ends
_LONGEST_NUMBER = 2**256  # more digits than any count has, and few enough for a message
_TOO_DEEP = f"it is nested more than {_DEEPEST} levels deep"
_TOO_LONG = "a number has hundreds of digits"
Pairs = Callable[[list[tuple[str, Any]]], Any]


class MoecliError(Exception):
    """A failure that is explained. `hint` is what to type or do next."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MoecliError):
    """An option or argument that cannot be meant."""

    exit_code = 2

    @classmethod
    def unknown(cls, option: str, value: str, takes: str) -> UsageError:
        """A value that an option does not take; `takes` says what it does."""
        return cls(f"unknown {option} '{value}'", f"it takes {takes}")


class ModelNotFound(MoecliError):
    """A MODEL that names nothing on this machine."""


class ConfigError(MoecliError):
    """A `config.json` that is unreadable, unsupported or absurd."""


class CheckpointError(MoecliError):
    """Weights that are missing, damaged or in a format that is refused."""


class TextError(MoecliError):
    """A tokenizer or chat template that is missing, damaged or hostile."""


class NotEnoughMemory(MoecliError):
    """A plan that does not fit this machine."""


class DiskError(MoecliError):
    """A disk that is full, or a folder that cannot be written."""


class NetworkError(MoecliError):
    """The Hub cannot be reached, or says no."""


class Declined(MoecliError):
    """A question that was answered with no."""


def printable(text: str, most: int | None = None) -> str:
    """The text on one line, in which a terminal finds no command; of more than `most` characters the beginning."""
    shown = "".join(letter if letter.isprintable() else escaped(letter) for letter in text)
    return shown if most is None or len(shown) <= most else f"{shown[: most - 3]}..."


def lines_printable(text: str) -> str:
    """The same of a text whose line ends and tabs stay."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def escaped(letter: str) -> str:
    """A character by its number: \\x1b, \\u202e, \\U000e0001."""
    code = ord(letter)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON that loses nothing and steers no terminal: characters that do not print are \\u escapes."""
    lines = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False).split("\n")
    return "\n".join(line if line.isprintable() else _json_escaped(line) for line in lines)


def _json_escaped(line: str) -> str:
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in line)


def json_object(
    content: bytes | str, refuse: Callable[[str], MoecliError], pairs: Pairs | None = None
) -> dict[str, Any]:
    """The JSON object that is there, bounded; `refuse` makes the error of what is wrong: "is not readable JSON: ...".

    The only reader of JSON that others wrote, or a disk may have damaged. `pairs` makes each object, if not a dict.
    """
    try:
        text = content.decode(json.detect_encoding(content)) if isinstance(content, bytes) else content
        value = json.loads(text, object_pairs_hook=pairs)
        if _check_bounds(value):
            whole = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
            value = json.loads(whole, object_pairs_hook=pairs)
    except RecursionError as error:
        raise refuse(f"is not readable JSON: {_TOO_DEEP}") from error
    except ValueError as error:
        problem = _TOO_LONG if "integer string conversion" in str(error) else error
        raise refuse(f"is not readable JSON: {problem}") from error
    if not isinstance(value, dict):
        raise refuse("does not hold a JSON object")
    return value


def _check_bounds(value: Any) -> bool:
    """Whether a text holds half a character, which no file can. ValueError for deep nesting and endless numbers."""
    level, halves = [value], False
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below += each
                below += each.values()
            elif isinstance(each, list):
                below += each
            elif isinstance(each, str):
                halves = halves or _is_cut(each)
            elif isinstance(each, int) and abs(each) >= _LONGEST_NUMBER:
                raise ValueError(_TOO_LONG)
        level = below
        if not level:
            return halves
    raise ValueError(_TOO_DEEP)


def _is_cut(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def unreadable(path: Path | str, error: OSError, hint: str | None = None) -> CheckpointError:
    """What the system says of a file or folder that cannot be read; `hint` where it does not depend on that."""
    helps = {
        errno.EACCES: f"make it readable: ls -l {path}",
        errno.EPERM: f"make it readable: ls -l {path}",
        errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
        errno.ENFILE: "close other programs: this machine has too many files open",
        errno.ENOMEM: "close other programs, or lower --ram",
        errno.EIO: "the disk fails or was taken away: moecli doctor, and your system's log",
    }
    advice = helps.get(error.errno or 0, hint or "moecli verify tells whether the files are whole")
    return CheckpointError(f"{path} cannot be read: {error.strerror or error}", advice)


def remedy(path: Path | str, error: OSError) -> str | None:
    """The hint where a failed read says nothing of the file, which may be whole; None where it may be damaged."""
    elsewhere = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return unreadable(path, error).hint if error.errno in elsewhere else None


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What the system says of a file or folder that is read in the block, as CheckpointError."""
    try:
        yield
    except OSError as error:
        raise unreadable(Path(error.filename) if isinstance(error.filename, str) else path, error) from error
