"""Prompt sets: the small one of several domains that comes with the program, and files of one's own."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from moecli.errors import MoecliError

_FOLDER = Path(__file__).parent / "prompts"
_CSV_HINT = "a first line text,domain (domain may be missing), then a prompt a line; or name the file .txt"
_HINT = 'one prompt a line, or JSONL: {"text": "...", "domain": "..."}'


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to read, and what kind of text it is."""

    text: str
    domain: str = ""


def bundled() -> list[Prompt]:
    """Eight short passages of each domain, a passage of each in turn, so that a cut leaves all domains."""
    passages = [
        [Prompt(text.strip("\n"), file.stem) for text in file.read_text(encoding="utf-8").split("\n----\n")]
        for file in sorted(_FOLDER.glob("*.txt"))
    ]
    return [prompt for prompt in chain(*zip_longest(*passages)) if prompt is not None]


def read(path: Path) -> list[Prompt]:
    """A file of one prompt a line, of a JSON object a line where the first line is one, or CSV with a heading."""
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise MoecliError(f"cannot read the prompts in {path}: {error.strerror}", _HINT) from error
    if path.suffix == ".csv":
        return _from_csv(path, lines)
    filled = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not filled:
        raise MoecliError(f"{path} holds no prompt", _HINT)
    if path.suffix == ".jsonl" or isinstance(_parsed(filled[0][1]), dict):
        return [_from_json(path, number, line) for number, line in filled]
    return [Prompt(line) for _, line in filled]


def _from_csv(path: Path, lines: list[str]) -> list[Prompt]:
    rows = csv.DictReader([f"{line}\n" for line in lines])
    if "text" not in (rows.fieldnames or ()):
        found = ", ".join(rows.fieldnames or ())[:60]
        raise MoecliError(f"{path} has no column 'text', but {found or 'nothing'}", _CSV_HINT)
    try:
        found_rows = [Prompt(row["text"], row.get("domain") or "") for row in rows if (row["text"] or "").strip()]
    except csv.Error as error:
        raise MoecliError(f"{path} is no CSV: {error}", _CSV_HINT) from error
    if not found_rows:
        raise MoecliError(f"{path} holds no prompt", _CSV_HINT)
    return found_rows


def _from_json(path: Path, number: int, line: str) -> Prompt:
    found = _parsed(line)
    if not isinstance(found, dict) or not isinstance(found.get("text"), str) or not found["text"].strip():
        raise MoecliError(f"line {number} of {path} has no text: {line[:60]!r}", _HINT)
    domain = found.get("domain") or ""
    if not isinstance(domain, str):
        raise MoecliError(f"line {number} of {path} has a domain that is no text: {domain!r}", _HINT)
    return Prompt(found["text"], domain)


def _parsed(line: str) -> Any:
    """What the line holds as JSON; None where it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
