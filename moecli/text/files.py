"""Read the small text files beside a model's weights, with a bound on how much is believed."""

from __future__ import annotations

import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any

from moecli.errors import MoecliError, TextError, json_object, unreadable

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tiktoken.model")  # that can be read; the first counts
_RANKS = ".tiktoken"  # ends the name of one more kind, which comes last
MOST_JSON = 64 * 2**20


def tokenizer_among(names: Collection[str]) -> str | None:
    """Which of these files is the tokenizer; None if none can be read as one."""
    named = [name for name in _TOKENIZERS if name in names] or sorted(name for name in names if is_tokenizer(name))
    return named[0] if named else None


def is_tokenizer(name: str) -> bool:
    """Whether a file of this name can be read as a tokenizer."""
    return name in _TOKENIZERS or name.endswith(_RANKS)


def read_bytes(path: Path, most: int, error: type[MoecliError] = TextError) -> bytes | None:
    """The file's bytes, None when there is no such file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for ever
            raise error(f"cannot read {path}: it is no regular file")
        if status.st_size > most:
            raise error(f"{path} is larger than {most // 2**20} MiB")
        with path.open("rb") as file:
            return file.read(most)
    except FileNotFoundError:
        return None
    except OSError as problem:
        found = unreadable(path, problem)
        raise error(found.message, found.hint) from None


def read_text(path: Path, most: int) -> str | None:
    content = read_bytes(path, most)
    if content is None:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise TextError(f"{path} is not UTF-8 text") from None


def read_object(path: Path, error: type[MoecliError] = TextError) -> dict[str, Any]:
    """The JSON object in a file; an absent file is an empty object."""
    content = read_bytes(path, MOST_JSON, error)
    if content is None:
        return {}
    return json_object(content, lambda problem: error(f"{path} {problem}", "the file is damaged: download it again"))
