"""Every failure a user or a file can cause: a sentence, a hint, an exit code; and what others wrote, made safe."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


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


def json_object(content: bytes | str, refuse: Callable[[str], MoecliError]) -> dict[str, Any]:
    """The JSON object that is there; `refuse` makes the error of what is wrong: "is not readable JSON: ..."."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise refuse(f"is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise refuse("does not hold a JSON object")
    return value
