"""manifest.json: what a packed store was made from, its formats, and a checksum of every file and record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moecli import __version__
from moecli.errors import CheckpointError, json_object, unreadable
from moecli.store.expert_record import Record

FILE = "manifest.json"
SCHEMA = 3  # 2: tied tables were in 16 bits; 1: q4 had a scale per 64 weights and no multiples of it
_LARGEST = 256 * 2**20


class OutdatedStore(CheckpointError):
    """A whole store of an older moecli, whose weights are packed otherwise; its `manifest` says what it is."""

    def __init__(self, folder: Path, found: StoreManifest) -> None:
        super().__init__(
            f"{folder} was packed by an older moecli, whose formats this one does not read",
            f"moecli rm {folder}, then moecli pack {found.origin.model} --dtype {found.dtype} again",
        )
        self.manifest = found


@dataclass(frozen=True, slots=True)
class Origin:
    """The checkpoint a store was packed from. `fingerprint` changes when any of its files does."""

    model: str  # the name it was asked for by: an alias, org/name or a folder
    repo: str | None
    revision: str | None  # the commit
    path: str | None  # where it lay, if not in a cache
    fingerprint: str

    def is_same(self, other: Origin) -> bool:
        """Whether both are one commit of one repository, or the same files."""
        if self.repo and self.revision:
            return (self.repo, self.revision) == (other.repo, other.revision)
        return self.fingerprint == other.fingerprint


@dataclass(frozen=True, slots=True)
class FileChecksums:
    """The size and SHA-256 of a file, and the first half of the SHA-256 of each of its tensors or records."""

    bytes: int
    sha256: str
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreManifest:
    """All that manifest.json says; what can be computed from config.json is there for other programs to read."""

    dtype: str
    compute: str
    origin: Origin
    roles: Mapping[str, str]  # formats
    files: Mapping[str, FileChecksums]
    records: Mapping[str, Any] = field(default_factory=dict)  # by layer, as `describe` puts it

    def write(self, path: Path) -> None:
        """Its last key is the digest of all others, so that no stray bit in it goes unseen."""
        document = {"schema_version": SCHEMA, "moecli_version": __version__} | asdict(self)
        text = json.dumps(document | {"digest": _digest(document)}, indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")


def describe(record: Record, experts: int) -> dict[str, Any]:
    """One layer's records in words and numbers."""
    fields = {
        name: {"shape": list(part.shape), "offset": part.offset, "bytes": part.size}
        for name, part in record.fields.items()
    }
    return {"count": experts, "dtype": record.dtype, "stride": record.stride, "fields": fields}


def read(folder: Path) -> StoreManifest:
    """The manifest of a store. CheckpointError if it is absent, damaged, or of a newer moecli; OutdatedStore."""
    document = _load(folder / FILE)
    schema = document.get("schema_version")
    if type(schema) is int and schema > SCHEMA:
        raise CheckpointError(
            f"{folder} was packed by a newer moecli (schema {schema}; this one reads {SCHEMA})", "upgrade moecli"
        )
    if type(schema) is not int or document.pop("digest", None) != _digest(document):
        raise damaged(folder, f"its {FILE} does not match its own checksum")
    try:
        found = _parse(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(folder, f"its {FILE} does not describe a store") from error
    if schema != SCHEMA:
        raise OutdatedStore(folder, found)
    return found


def damaged(folder: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"the packed model {folder} is damaged: {problem}", f"moecli rm {folder}, and pack it again")


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise damaged(path.parent, f"its {FILE} is too large")
        content = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} is not a packed model: it holds no {FILE}",
            "moecli list shows the packed models that are here",
        ) from None
    except OSError as error:
        raise unreadable(path, error) from error
    return json_object(content, lambda problem: damaged(path.parent, f"its {FILE} {problem}"))


def _digest(document: Mapping[str, Any]) -> str:
    """Of the values, however they are spaced."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _parse(document: Mapping[str, Any]) -> StoreManifest:
    return StoreManifest(
        dtype=_text(document["dtype"]),
        compute=_text(document["compute"]),
        origin=read_origin(document["origin"]),
        roles={role: _text(dtype) for role, dtype in document["roles"].items()},
        files={name: read_checksums(entry) for name, entry in document["files"].items()},
        records=dict(document["records"]),
    )


def read_origin(entry: Mapping[str, Any]) -> Origin:
    """As manifest and journal hold it. KeyError, TypeError or AttributeError where it is something else."""
    optional = {key: None if entry[key] is None else _text(entry[key]) for key in ("repo", "revision", "path")}
    return Origin(model=_text(entry["model"]), fingerprint=_text(entry["fingerprint"]), **optional)


def read_checksums(entry: Mapping[str, Any]) -> FileChecksums:
    """As manifest and journal hold them. KeyError, TypeError or AttributeError where they are something else."""
    parts = entry["parts"]
    if type(entry["bytes"]) is not int or not isinstance(parts, (list, tuple)):
        raise TypeError("sizes are whole numbers, parts a list")
    return FileChecksums(entry["bytes"], _text(entry["sha256"]), tuple(map(_text, parts)))


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("not text")
    return value
