"""The packed models on this machine: list them, describe one, remove one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moecli import settings
from moecli.errors import ModelNotFound, MoecliError, reading
from moecli.hub import cache as hub_cache
from moecli.store import journal, manifest
from moecli.store import remove as store_removal
from moecli.store.layout import DENSE
from moecli.store.packed import is_partial, is_removed


@dataclass(frozen=True, slots=True)
class LocalStore:
    """One store, or what was packed of it so far. Its `path` is a MODEL once it is complete."""

    name: str  # of its folder
    model: str  # the name it was packed from
    dtype: str
    bytes: int  # on disk
    path: Path
    source: str
    revision: str | None
    complete: bool
    damaged: bool = False  # it does not say what it is


def local_stores() -> list[LocalStore]:
    """Every store under MOECLI_HOME, finished or not, by name. One that cannot be read counts as damaged."""
    try:
        folders = sorted(settings.stores().iterdir())
    except OSError:
        return []
    return [store for folder in folders if (store := _described(folder)) is not None]


def _described(folder: Path) -> LocalStore | None:
    try:
        return describe(folder)
    except (OSError, MoecliError):
        return _unknown(folder, 0)


def described(folder: Path) -> LocalStore | None:
    """What a folder holds of a store; None if it is none. CheckpointError where this user may not look."""
    with reading(folder):
        return describe(folder)


def default_folder(name: str, dtype: str) -> Path:
    """Where the store of a model goes unless the user says so: named after its alias, org/name or folder."""
    return settings.stores() / f"{name.replace('/', '--').replace(':', '-')}-{dtype}"


def describe(folder: Path) -> LocalStore | None:
    """What a folder holds of a store; None if it is none. OSError where it cannot be listed.

    A damaged one is known by where it lies, or by its name.
    """
    if hub_cache.is_folder(folder):
        os.scandir(folder).close()
    complete = False
    try:
        found: Mapping[str, Any] | None = asdict(_manifest(folder))
        complete = not is_partial(folder) and not is_removed(folder)
    except MoecliError:
        found = journal.read_plan(folder)
    if found is None:
        return _unknown(folder, _occupied(folder)) if _was_ours(folder) else None
    origin = manifest.read_origin(found["origin"])
    return LocalStore(
        name=folder.name,
        model=origin.model,
        dtype=str(found["dtype"]),
        bytes=_occupied(folder),
        path=folder,
        source=origin.repo or origin.path or origin.model,
        revision=origin.revision,
        complete=complete,
    )


def _manifest(folder: Path) -> manifest.StoreManifest:
    """Of a store of an older moecli too: it is refused when it is opened, but can be listed and deleted."""
    try:
        return manifest.read(folder)
    except manifest.OutdatedStore as old:
        return old.manifest


def remove(folder: Path) -> int:
    """Delete a store, finished or not; the bytes that frees. ModelNotFound or DiskError for anything else."""
    store = described(folder)
    if store is None or folder.is_symlink():
        raise ModelNotFound(f"{folder} is not a packed model")
    store_removal.remove(folder)
    return store.bytes


def being_removed(folder: Path) -> LocalStore | None:
    """What an interrupted removal of this store left; None if nothing."""
    left = store_removal.leftover(folder)
    return described(left) if hub_cache.is_folder(left) else None


def _was_ours(folder: Path) -> bool:
    """Whether a folder without a word about itself is one that moecli made: unfinished, half deleted or damaged."""
    if not hub_cache.is_folder(folder):
        return False
    told = is_partial(folder) or any(hub_cache.is_file(folder / name) for name in (manifest.FILE, DENSE))
    return is_removed(folder) or (told and folder.parent == settings.stores())


def _occupied(folder: Path) -> int:
    return sum(journal.occupied(file) for file in folder.iterdir())


def _unknown(folder: Path, size: int) -> LocalStore:
    """One that says nothing of itself."""
    damaged = not is_removed(folder) and not (is_partial(folder) and not hub_cache.status(folder / journal.FILE))
    return LocalStore(folder.name, folder.name, "unknown", size, folder, str(folder), None, False, damaged)
