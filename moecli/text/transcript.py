"""A conversation as a file: who said what, in which order, and the system message."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecli.errors import TextError, json_object
from moecli.text.chat import Message
from moecli.text.incoming import without_halves

_KIND = "moecli chat"
_MOST = 64 * 2**20  # bytes
_ROLES = ("user", "assistant")


@dataclass(frozen=True, slots=True)
class Transcript:
    """Messages of the user and the assistant in turn; `model` is who spoke."""

    model: str
    system: str | None
    messages: Sequence[Message]


def to_bytes(transcript: Transcript) -> bytes:
    """As JSON."""
    document = {
        "kind": _KIND,
        "schema_version": 1,
        "model": transcript.model,
        "system": transcript.system,
        "messages": [{"role": each.role, "content": each.content} for each in transcript.messages],
    }
    return (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode("utf-8", "replace")


def read(path: Path) -> Transcript:
    """The conversation in a file. TextError for what is none; OSError as it comes."""

    def refuse(problem: str) -> TextError:
        return TextError(f"{path} {problem}", "/save FILE writes what /load reads")

    with path.open("rb") as file:
        content = file.read(_MOST + 1)
    if len(content) > _MOST:
        raise refuse(f"is larger than {_MOST >> 20} MiB")
    found = json_object(content, refuse)
    if found.get("kind") != _KIND or found.get("schema_version") != 1:
        raise refuse("is no saved chat")
    messages = found.get("messages")
    turns = [_message(each) for each in messages] if isinstance(messages, list) else []
    system, model = found.get("system"), found.get("model")
    speakers = [each.role for each in turns if each is not None]
    if not isinstance(system, str | None) or not isinstance(model, str) or speakers != [*_ROLES] * (len(turns) // 2):
        raise refuse("is a damaged chat: its messages are not of user and assistant in turn")
    kept = [each for each in turns if each is not None]
    return Transcript(without_halves(model), system and without_halves(system), kept)


def _message(found: Any) -> Message | None:
    role, content = (found.get("role"), found.get("content")) if isinstance(found, dict) else (None, None)
    if not isinstance(role, str) or not isinstance(content, str):
        return None
    return Message(role, without_halves(content))
