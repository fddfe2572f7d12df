"""The packed models on this machine: list them, describe one, remove one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moecli import settings
from moecli.errors import DiskError, ModelNotFound, MoecliError
from moecli.hub.cache import UNFINISHED
from moecli.store import journal, manifest
from moecli.store.incremental import GROWING
from moecli.store.journal import explained, locked
from moecli.store.manifest import Origin
from moecli.store.packed import is_partial
from moecli.store.source import TEXTS


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


def local_stores() -> list[LocalStore]:
    """Every store under MOECLI_HOME, finished or not, by name."""
    try:
        folders = sorted(settings.stores().iterdir())
    except OSError:
        return []
    return [store for folder in folders if (store := described(folder)) is not None]


def described(folder: Path) -> LocalStore | None:
    """What a folder holds of a store; None if it is none. DiskError where this user may not look."""
    try:
        return describe(folder)
    except OSError as error:
        raise DiskError(
            f"'{error.filename or folder}' cannot be read: {error.strerror or error}",
            f"make {folder} readable, or move it away",
        ) from error


def default_folder(name: str, dtype: str) -> Path:
    """Where the store of a model goes unless the user says so: named after its alias, org/name or folder."""
    return settings.stores() / f"{name.replace('/', '--')}-{dtype}"


def describe(folder: Path) -> LocalStore | None:
    """What a folder holds of a store; None if it is none. A damaged one is known by where it lies."""
    complete = False
    try:
        found: Mapping[str, Any] | None = asdict(manifest.read(folder))
        complete = not is_partial(folder)
    except MoecliError:
        found = journal.read_plan(folder)
    try:
        origin, dtype = (Origin(**found["origin"]), str(found["dtype"])) if found else (None, "unknown")
    except (KeyError, TypeError):
        return None
    if origin is None and not (folder.parent == settings.stores() and (folder / manifest.FILE).is_file()):
        return None
    return LocalStore(
        name=folder.name,
        model=origin.model if origin else folder.name,
        dtype=dtype,
        bytes=sum(journal.occupied(file) for file in folder.iterdir()),
        path=folder,
        source=(origin.repo or origin.path or origin.model) if origin else str(folder),
        revision=origin.revision if origin else None,
        complete=complete,
    )


def remove(folder: Path) -> int:
    """Delete a store, finished or not; the bytes that frees. ModelNotFound or DiskError for anything else."""
    store = describe(folder)
    if store is None or folder.is_symlink():
        raise ModelNotFound(f"{folder} is not a packed model")
    strangers = sorted(file.name for file in folder.iterdir() if not _is_ours(file))
    if strangers:
        raise DiskError(f"{folder} holds '{strangers[0]}', which moecli did not put there", "move it away first")
    with locked(folder) if is_partial(folder) else nullcontext(), explained(folder):
        (folder / manifest.FILE).unlink(missing_ok=True)  # first, so that what is left is no model
        shutil.rmtree(folder)
    return store.bytes


def _is_ours(file: Path) -> bool:
    named = file.name in (manifest.FILE, journal.FILE, journal.LOCK, *TEXTS)
    named = named or file.suffix in (".safetensors", GROWING, UNFINISHED)
    return named and file.is_file() and not file.is_symlink()
