"""Prompts for a batch, a JSON object a line: what each line asks, or in words what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecli.errors import MoecliError, json_object, printable
from moecli.routing.prompts import turns_of
from moecli.text import incoming
from moecli.text.chat import Message
from moecli.text.incoming import Tell, without_halves

HINT = 'a JSON object a line: {"prompt": "..."} or {"messages": [...]}, with id, seed, max_tokens where wanted'
_KNOWN = {"prompt", "text", "messages", "id", "seed", "max_tokens", "domain"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A line that asks something; what it does not say of `seed` and `max_tokens` is the command's."""

    number: int  # of the line, from 1
    text: str
    turns: tuple[Message, ...] = ()  # where it is a conversation
    id: str | int | None = None
    seed: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Unclear:
    """A line that asks nothing that could be answered: its `content`, and why."""

    number: int
    content: str
    problem: str
    id: str | int | None = None


Line = Asked | Unclear


def read(path: Path, stdin: bytes | None, tell: Tell) -> list[Line]:
    """The lines of a file, or of `stdin` where there is some; empty ones ask nothing. MoecliError if all are empty.

    `tell` gets a sentence on bytes that are no text, and on keys that nobody reads. Of a .txt each line is a prompt.
    """
    name = "stdin" if stdin is not None else str(path)
    try:
        if stdin is None:
            with path.open("rb") as file:
                stdin = incoming.read(file, name)
    except OSError as error:
        raise MoecliError(f"--prompts {printable(name, 80)} cannot be read: {error.strerror}", HINT) from error
    text = incoming.decode(stdin, name, tell)
    filled = [(number, line) for number, line in enumerate(incoming.lines(text), 1) if line.strip()]
    if not filled:
        raise MoecliError(f"{printable(name, 80)} holds no prompt", HINT)
    if path.suffix.lower() == ".txt":
        return [Asked(number, without_halves(line)) for number, line in filled]
    unread: set[str] = set()
    found = [_line(number, line, unread) for number, line in filled]
    if unread:
        shown = printable(", ".join(sorted(unread)), 120)
        tell(f"note: nothing reads {shown} in {printable(name, 80)}; what is read: {', '.join(sorted(_KNOWN))}")
    return found


def _line(number: int, content: str, unread: set[str]) -> Line:
    name: str | int | None = None

    def unclear(problem: str) -> Unclear:
        return Unclear(number, content, problem, name)

    try:
        fields = _fields(content)
    except MoecliError as error:
        return unclear(error.message)
    unread |= fields.keys() - _KNOWN
    if isinstance(fields.get("id"), (str, int)) and not isinstance(fields["id"], bool):
        name = without_halves(fields["id"]) if isinstance(fields["id"], str) else fields["id"]
    elif fields.get("id") is not None:
        return unclear("id is neither text nor a whole number")
    for key, least in (("seed", 0), ("max_tokens", 1)):
        value = fields.get(key)
        if value is not None and (type(value) is not int or value < least):
            return unclear(f"{key} is no whole number from {least} on")
    turns = turns_of(fields.get("messages"))
    texts: Sequence[Any] = (fields.get("prompt"), fields.get("text"), "\n\n".join(turn.content for turn in turns))
    text = next((each for each in texts if isinstance(each, str) and each.strip()), None)
    if text is None:
        return unclear("it has no prompt, text or messages")
    said = turns if text == texts[2] else ()
    return Asked(number, without_halves(text), said, name, fields.get("seed"), fields.get("max_tokens"))


def _fields(content: str) -> dict[str, Any]:
    """What a line says; a text by itself is a prompt. MoecliError if it is no JSON object."""
    if content.lstrip().startswith('"'):
        try:
            return {"prompt": json.loads(content)}
        except ValueError as error:
            raise MoecliError(f"it is not readable JSON: {error}") from error
    return json_object(content, lambda problem: MoecliError(f"it {problem}"))
