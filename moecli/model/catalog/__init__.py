"""The models moecli knows by name: alias to Hub repository, published figures and a bundled config.json."""

from __future__ import annotations

import json
import pkgutil
import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from typing import Any, Literal

__all__ = ["BUILT_IN", "Entry", "Published", "Stored", "find", "known", "nearest", "port"]

# The model inside the package: every command takes its name, but it is no Hub repository and so no entry.
BUILT_IN = "tiny"

Kind = Literal["moe", "dense-reference", "paper"]
# published: a copy of the model's own file. sibling: that of another release with the same architecture.
ConfigStatus = Literal["published", "sibling", "reconstructed", "trimmed", "described", "paper"]


@dataclass(frozen=True, slots=True)
class Published:
    """The size a vendor prints, as printed: "46.7B". `status` says how far the source was seen."""

    total: str
    active: str | None
    source: str
    status: Literal["seen", "partly seen", "recalled"]
    note: str | None


@dataclass(frozen=True, slots=True)
class Stored:
    """What the tensors of the published files take, and the format most of the parameters are in."""

    bytes: int
    format: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One model. `repo` is None where no weights exist; `revision` is None where none is pinned."""

    alias: str
    names: tuple[str, ...]
    repo: str | None
    revision: str | None
    licence: str | None
    config_file: str
    config_status: ConfigStatus
    provenance: str
    published: Published | None
    kind: Kind
    tokenizer: str | None = None  # a repository that has one, where the model's own has none
    ports: tuple[str, ...] = ()  # other repositories that hold the same model
    stored: Stored | None = None  # where the files are quantised, so that config.json does not imply their size

    def config(self) -> dict[str, object]:
        """The bundled config.json: the facts without a network; `config_status` tells how good they are."""
        config: dict[str, object] = json.loads(_read("configs", self.config_file))
        return config


@cache
def known() -> tuple[Entry, ...]:
    """Every entry, family by family; dense references come last."""
    rows: list[dict[str, Any]] = json.loads(_read("models.json"))
    return tuple(_entry(row) for row in rows)


def find(name: str) -> Entry | None:
    """The entry with this alias, accepted name or Hub id; capitals do not matter, `:` may stand for `-`."""
    return _index().get(_plain(name))


def port(repo: str) -> Entry | None:
    """The entry whose model this other repository holds, by its Hub id."""
    return next((entry for entry in known() if _plain(repo) in map(_plain, entry.ports)), None)


def nearest(name: str, limit: int = 3) -> list[str]:
    """The aliases that look most like `name`, best first; empty when nothing does."""
    wanted = _letters(name)
    if not 2 <= len(wanted) <= 60:
        return []
    scores = {entry.alias: max(_likeness(wanted, _letters(n)) for n in _names(entry)) for entry in known()}
    scores[BUILT_IN] = _likeness(wanted, BUILT_IN)
    close = [alias for alias, score in scores.items() if score >= 0.7]
    return sorted(close, key=lambda alias: -scores[alias])[:limit]


def _likeness(wanted: str, candidate: str) -> float:
    """1.0 is equal. The start of a name counts double, so that `qwen3` finds qwen3-30b-a3b before a qwen2."""
    start, whole = (
        SequenceMatcher(None, wanted, text, autojunk=False).ratio() for text in (candidate[: len(wanted)], candidate)
    )
    behind = 0.05 if candidate.endswith("base") and "base" not in wanted else 0
    return (2 * start + whole) / 3 - behind


@cache
def _index() -> dict[str, Entry]:
    index: dict[str, Entry] = {}
    for entry in known():
        for name in _names(entry):
            index[_plain(name)] = entry
        if entry.repo:
            index[_plain(entry.repo)] = entry
    return index


def _names(entry: Entry) -> tuple[str, ...]:
    return (entry.alias, *entry.names)


def _plain(name: str) -> str:
    return re.sub(r"[\s_:]", "-", name.strip().casefold())


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _entry(row: dict[str, Any]) -> Entry:
    published = Published(**row["published"]) if row["published"] else None
    stored = Stored(**row["stored"]) if "stored" in row else None
    lists = {"names": tuple(row["names"]), "ports": tuple(row.get("ports", ()))}
    return Entry(**{**row, **lists, "published": published, "stored": stored})


def _read(*path: str) -> str:
    """A data file of this room, from a folder or from inside a zip; importlib.resources takes long to import."""
    data = pkgutil.get_data(__name__, "/".join(path))
    assert data is not None
    return data.decode()
