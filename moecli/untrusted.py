"""What others wrote, taken with care: text that a terminal may show, JSON that must be an object."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from moecli.errors import MoecliError


def printable(text: str, most: int | None = None) -> str:
    """The text on one line, in which a terminal finds no command; of more than `most` characters the beginning."""
    shown = "".join(letter if letter.isprintable() else escaped(letter) for letter in text)
    return shown if most is None or len(shown) <= most else f"{shown[: most - 3]}..."


def escaped(letter: str) -> str:
    """A character by its number: \\x1b, \\u202e, \\U000e0001."""
    code = ord(letter)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def json_object(content: bytes | str, refuse: Callable[[str], MoecliError]) -> dict[str, Any]:
    """The JSON object that is there; `refuse` makes the error of what is wrong: "is not readable JSON: ..."."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise refuse(f"is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise refuse("does not hold a JSON object")
    return value
