"""Deleting a model: what goes, what stays because something else uses it, and how much room that makes."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from moecli.errors import DiskError, ModelNotFound, reading
from moecli.hub import cache as hub_cache
from moecli.library import stores
from moecli.library.resolve import ModelRef
from moecli.library.stores import LocalStore


@dataclass(frozen=True, slots=True)
class Removal:
    """What would be deleted. `bytes` is what it frees, `kept_bytes` what other revisions share."""

    name: str
    source: str
    revisions: tuple[str, ...]
    paths: tuple[Path, ...]
    bytes: int
    kept_bytes: int

    def carry_out(self) -> None:
        """Delete. DiskError if something cannot be deleted."""
        for path in self.paths:
            try:
                if hub_cache.is_folder(path) and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise DiskError(f"{error.filename or path} cannot be deleted: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class StoreRemoval:
    """A packed model, finished or not, that would be deleted."""

    store: LocalStore

    @property
    def name(self) -> str:
        return self.store.name

    @property
    def source(self) -> str:
        return self.store.name

    @property
    def revisions(self) -> tuple[str, ...]:
        return ()

    @property
    def bytes(self) -> int:
        return self.store.bytes

    @property
    def kept_bytes(self) -> int:
        return 0

    def carry_out(self) -> None:
        """Delete it. DiskError if it holds what moecli did not put there, or cannot be deleted."""
        stores.remove(self.store.path)


def removal(ref: ModelRef) -> Removal | StoreRemoval:
    """What deleting a model means: a packed model that was named itself, else what the Hugging Face cache holds of it.

    Every revision, or the one after `@`. ModelNotFound if there is nothing.
    """
    if ref.store is not None:
        return StoreRemoval(ref.store)
    if ref.repo is None:
        lies = ref.folder or ref.file
        where = f"it lies in {lies}" if lies else f"moecli inspect {ref.name}"
        raise ModelNotFound(f"'{ref.name}' was not pulled, so rm leaves it alone", where)
    one = "@" in ref.typed
    root = hub_cache.repository(ref.repo)
    folders = hub_cache.children(root / "snapshots")
    chosen = _named(root, ref.revision) if one and ref.revision else folders
    remains = hub_cache.is_folder(root) and not (one and hub_cache.disk_files(root))  # no more than a removal left
    if not chosen and not remains:
        raise ModelNotFound(f"'{ref.typed}' is not on this machine", "moecli list")
    _refuse_while_pulled(ref.repo, root / "blobs")
    if not one or set(folders) <= set(chosen):
        return _everything(ref.name, ref.repo, root, chosen)
    return _revision(ref.name, ref.repo, root, chosen[0])


def _everything(name: str, repo: str, root: Path, folders: list[Path]) -> Removal:
    size = sum(status.st_size for status in hub_cache.disk_files(root).values())
    paths = (hub_cache.lock_folder(repo), *(root / part for part in ("blobs", "snapshots", "trees", ".no_exist")), root)
    return Removal(name, repo, tuple(f.name for f in folders), paths, size, 0)


def _named(root: Path, revision: str) -> list[Path]:
    """The snapshot of a revision; also one of which a removal that was stopped left no more than its name."""
    commit = hub_cache.commit(root, revision)
    if commit is None:
        return []
    folder = root / "snapshots" / commit
    left = any(hub_cache.status(path) for path in (folder, *_notes(root, commit)))
    return [folder] if left or _refs(root, commit) else []


def _refs(root: Path, commit: str) -> list[Path]:
    """The branches and tags that name a commit."""
    names = {ref: ref.relative_to(root / "refs").as_posix() for ref in (root / "refs").rglob("*")}
    return [ref for ref, name in names.items() if hub_cache.is_file(ref) and hub_cache.commit(root, name) == commit]


def _notes(root: Path, commit: str) -> tuple[Path, Path]:
    """What huggingface_hub writes down about a commit."""
    return root / "trees" / f"{commit}.json", root / ".no_exist" / commit


def _revision(label: str, repo: str, root: Path, folder: Path) -> Removal:
    """One of several revisions: its own blobs, its links, and the refs that name it, last: a second rm needs them."""
    others = [other for other in hub_cache.children(root / "snapshots") if other != folder]
    used = _blobs(folder)
    shared = used & set[Path]().union(*map(_blobs, others))
    own = tuple(sorted(used - shared))
    size = _sizes(own) + _sizes(hub_cache.disk_files(folder))
    return Removal(
        label,
        repo,
        (folder.name,),
        (*own, folder, *_notes(root, folder.name), *_refs(root, folder.name)),
        size,
        _sizes(shared),
    )


def _blobs(folder: Path) -> set[Path]:
    """What a snapshot links to, in this repository only."""
    root = folder.parents[1] / "blobs"
    with reading(folder):
        links = {file.readlink().name for file in folder.rglob("*") if file.is_symlink()}
    return {root / name for name in links if hub_cache.is_file(root / name)}


def _sizes(paths: Iterable[Path]) -> int:
    found = (hub_cache.status(path, follow_symlinks=False) for path in paths)
    return sum(status.st_size for status in found if status is not None)


def _refuse_while_pulled(repo: str, blobs: Path) -> None:
    """Whoever fetches a blob holds its lock."""
    for partial in blobs.glob(f"*{hub_cache.UNFINISHED}"):
        from moecli.hub import client

        lock_of = client.library().utils.WeakFileLock

        lock = hub_cache.lock_folder(repo) / f"{partial.name.partition('.')[0]}.lock"
        try:
            if lock.exists():
                with lock_of(lock, timeout=0.05):
                    pass
        except TimeoutError as error:
            raise DiskError(f"{repo} is being downloaded right now", "stop that download first") from error
