"""Read the small text files beside a model's weights, with a bound on how much is believed."""

from __future__ import annotations

import re
import stat
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from moecli.errors import MoecliError, TextError, json_object, reading, unreadable

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tiktoken.model")  # that can be read; the first counts
_RANKS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\.tiktoken")  # one more kind, which comes last
_COMPANIONS = (  # of a tokenizer
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
_UNREAD = (  # other programs' tokenizers, kept beside the one that counts
    "vocab.json", "merges.txt", "tekken.json", "tokenizer.tok.json", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer.model.v3",
)  # fmt: skip
_TEXTS = ("config.json", "generation_config.json", *_TOKENIZERS, *_COMPANIONS, *_UNREAD)
MOST_JSON = 64 * 2**20


def tokenizer_among(names: Collection[str]) -> str | None:
    """Which of these files is the tokenizer; None if none can be read as one."""
    named = [name for name in _TOKENIZERS if name in names] or sorted(name for name in names if is_tokenizer(name))
    return named[0] if named else None


def is_tokenizer(name: str) -> bool:
    """Whether a file of this name can be read as a tokenizer."""
    return name in _TOKENIZERS or _RANKS.fullmatch(name) is not None


def unread_tokenizers(names: Iterable[str]) -> list[str]:
    """Those of these files that are tokenizers which cannot be read."""
    return sorted(name for name in names if name in _UNREAD and name != "merges.txt")


def is_text(name: str) -> bool:
    """Whether a file of this name is one of the small files that a model needs or is kept with."""
    return name in _TEXTS or is_tokenizer(name)


def texts_in(folder: Path, given: Path | None = None) -> dict[str, Path]:
    """The small files of a model by name; with the tokenizer of `given`, a file or a folder, instead of its own.

    What is said of that tokenizer beside it counts, else what the model says.
    """
    own = _texts(folder)
    if given is None:
        return own
    others = tokenizer_texts(given)
    replaced = _COMPANIONS[:3] if "tokenizer_config.json" in others else ()
    return {name: path for name, path in own.items() if not is_tokenizer(name) and name not in replaced} | others


def tokenizer_texts(given: Path) -> dict[str, Path]:
    """The tokenizer that a file is or a folder holds, and what lies beside it of its kind. TextError if there is none.

    It has the name that it would have in a model folder.
    """
    beside = _texts(given.parent if given.is_file() else given)
    companions = {name: path for name, path in beside.items() if name in _COMPANIONS}
    if given.is_file():
        return companions | {_plain_name(given): given}
    if (name := tokenizer_among(beside)) is None:
        raise TextError(f"{given} holds no tokenizer that can be read", f"{', '.join(_TOKENIZERS)} and *.tiktoken can")
    return companions | {name: beside[name]}


def _texts(folder: Path) -> dict[str, Path]:
    with reading(folder):
        return {path.name: path for path in sorted(folder.iterdir()) if is_text(path.name) and path.is_file()}


def _plain_name(file: Path) -> str:
    """The name that a tokenizer's file has in a model folder: its own, or the one that its content is read under."""
    if is_tokenizer(file.name):
        return file.name
    return "tokenizer.json" if file.suffix == ".json" else "tokenizer.model"


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
