"""Prompt sets: the small one of several domains that comes with the program, and files of one's own."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from moecli.errors import MoecliError, printable
from moecli.text import incoming
from moecli.text.chat import Message
from moecli.text.incoming import Tell, decode, lines, without_halves

_FOLDER = Path(__file__).parent / "prompts"
_CSV_HINT = "a first line text,domain (domain may be missing), then a prompt a row; or name the file .txt"
_HINT = 'one prompt a line, or JSONL: {"text": "...", "domain": "..."}, with prompt or messages for text'


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to read, and what kind of text it is; `turns` where it was a conversation."""

    text: str
    domain: str = ""
    turns: tuple[Message, ...] = ()


def bundled() -> list[Prompt]:
    """Eight short passages of each domain, a passage of each in turn, so that a cut leaves all domains."""
    passages = [
        [Prompt(text.strip("\n"), file.stem) for text in file.read_text(encoding="utf-8").split("\n----\n")]
        for file in sorted(_FOLDER.glob("*.txt"))
    ]
    return [prompt for prompt in chain(*zip_longest(*passages)) if prompt is not None]


def read(path: Path, tell: Tell) -> list[Prompt]:
    """The prompts in a file; `tell` gets a sentence on what is no text. MoecliError if there are none."""
    try:
        with path.open("rb") as file:
            content = incoming.read(file, str(path))
    except OSError as error:
        raise MoecliError(f"cannot read the prompts in {path}: {error.strerror}", _HINT) from error
    return parse(content, str(path), tell)


def parse(content: bytes, name: str, tell: Tell) -> list[Prompt]:
    """A prompt a line, a JSON object a line, one JSON array of texts or objects, or CSV with a heading."""
    text = decode(content, name, tell)
    if not text.strip():
        raise MoecliError(f"{name} holds no prompt", _HINT)
    kind = Path(name.removesuffix(".gz")).suffix.lower()
    if kind == ".csv":
        return _from_csv(text, name, tell)
    whole = _parsed(text)
    if isinstance(whole, dict):
        whole = [whole]
    if isinstance(whole, list) and all(isinstance(each, dict | str) for each in whole):
        found = [_from_json(f"item {number} of {name}", each, tell) for number, each in enumerate(whole, 1)]
    elif kind == ".json":
        raise MoecliError(f"{name} is no JSON array of prompts", _HINT)
    else:
        filled = [(f"line {number} of {name}", line) for number, line in enumerate(lines(text), 1) if line.strip()]
        if kind == ".jsonl" or isinstance(_parsed(filled[0][1]), dict):
            found = [_from_json(where, _parsed(line), tell, line) for where, line in filled]
        else:
            found = [Prompt(line) for _, line in filled]
    if not found:
        raise MoecliError(f"{name} holds no prompt", _HINT)
    return found


def _from_csv(text: str, name: str, tell: Tell) -> list[Prompt]:
    """The column `text` or `prompt`, and `domain`; empty ones are left out."""
    rows = csv.DictReader(io.StringIO(text, newline=""), restkey="")
    columns = [column.strip() for column in rows.fieldnames or ()]
    if not {"text", "prompt"} & {*columns}:
        raise MoecliError(f"{name} has no column text or prompt, but '{printable(', '.join(columns), 60)}'", _CSV_HINT)
    rows.fieldnames = columns
    try:
        known = enumerate(rows, 1)
        filled = [(number, row) for number, row in known if (row.get("text") or row.get("prompt") or "").strip()]
    except csv.Error as error:
        raise MoecliError(f"{name} is no CSV: {error}", _CSV_HINT) from error
    if not filled:
        raise MoecliError(f"{name} holds no prompt", _CSV_HINT)
    return [_from_json(f"row {number} of {name}", row, tell) for number, row in filled]


def _from_json(where: str, found: Any, tell: Tell, line: str = "") -> Prompt:
    """A prompt from a string, or from an object's `text`, `prompt` or `messages`, the first that holds one."""
    if isinstance(found, str):
        found = {"text": found}
    fields = found if isinstance(found, dict) else {}
    turns = turns_of(fields.get("messages"))
    texts = (fields.get("text"), fields.get("prompt"), "\n\n".join(turn.content for turn in turns))
    text = next((each for each in texts if isinstance(each, str) and each.strip()), None)
    if text is None:
        shown = printable(line or json.dumps(found), 60)
        raise MoecliError(f"{where} has no text, prompt or messages: '{shown}'", _HINT)
    domain = fields.get("domain") or ""
    if not isinstance(domain, str):
        raise MoecliError(f"{where} has a domain that is no text: {printable(repr(domain), 60)}", _HINT)
    prompt = Prompt(without_halves(text), without_halves(domain), turns if text == texts[2] else ())
    if prompt.text != text or prompt.domain != domain:
        tell(f"note: {where} holds half of a surrogate pair, which became U+FFFD")
    return prompt


def turns_of(messages: Any) -> tuple[Message, ...]:
    """The turns of a conversation that have text: a string, or a list of parts of which some have it."""
    turns = []
    for each in messages if isinstance(messages, list) else ():
        role, content = (each.get("role"), each.get("content")) if isinstance(each, dict) else (None, None)
        parts: Sequence[Any] = content if isinstance(content, list) else [{"text": content}]
        texts = [part.get("text") for part in parts if isinstance(part, dict)]
        text = "\n".join(text for text in texts if isinstance(text, str))
        if isinstance(role, str) and text:
            turns.append(Message(without_halves(role), without_halves(text)))
    return tuple(turns)


def _parsed(text: str) -> Any:
    """What the text holds as JSON; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
