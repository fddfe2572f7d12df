"""The Hugging Face cache, shared with every other tool: which models it holds, and what a snapshot still lacks."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moecli import settings
from moecli.checkpoint import files, gguf_names
from moecli.checkpoint.files import weight_map
from moecli.checkpoint.gguf_names import Variant
from moecli.errors import CheckpointError, ModelNotFound, MoecliError, unreadable
from moecli.model import catalog

if TYPE_CHECKING:
    from hashlib import _Hash

UNFINISHED = ".incomplete"  # the suffix of a blob that is still being fetched
BLOB_NAME = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_REPO = re.compile(rf"{_PART}/{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
_COMMIT = re.compile(r"[0-9A-Za-z]{1,64}")


@dataclass(frozen=True, slots=True)
class LocalModel:
    """One repository in the cache; `path` is the revision in use, `bytes` counts all of them."""

    name: str
    repo: str
    revision: str | None
    path: Path
    bytes: int
    complete: bool
    revisions: tuple[str, ...]  # commits
    partial_bytes: int  # of downloads that were not finished
    last_used: float | None  # seconds since 1970; when a file of it was last read, as far as the disk records that
    damaged: bool = False  # it cannot be read


def local_models() -> list[LocalModel]:
    """Every model repository in the cache, by name."""
    models = []
    for root in children(settings.hub_cache()):
        kind, *parts = root.name.split("--")
        repo = "/".join(parts)
        if kind != "models" or not is_repo(repo):
            continue
        try:
            model = _local_model(root, repo)
        except MoecliError:  # no other model's trouble
            model = LocalModel(repo, repo, None, root, 0, False, (), 0, None, damaged=True)
        if model:
            models.append(model)
    return sorted(models, key=lambda model: model.name.casefold())


def _local_model(root: Path, repo: str) -> LocalModel | None:
    files = disk_files(root / "blobs", root / "snapshots")
    if not sum(status.st_size for status in files.values()):
        return None
    best = snapshot(repo) or next(iter(snapshots(repo, None)), None)
    entry = catalog.find(repo)
    return LocalModel(
        name=entry.alias if entry and entry.repo == repo else repo,
        repo=repo,
        revision=best.name if best else None,
        path=best or root,
        bytes=sum(status.st_size for status in files.values()),
        complete=best is not None and lack(best) is None,
        revisions=tuple(folder.name for folder in children(root / "snapshots")),
        partial_bytes=sum(status.st_size for file, status in files.items() if file.suffix == UNFINISHED),
        last_used=max(status.st_atime for status in files.values()),
    )


def snapshot(repo: str, revision: str | None = None) -> Path | None:
    """The newest whole-looking snapshot of a repository."""
    return next((folder for folder in snapshots(repo, revision) if lack(folder) is None), None)


def snapshots(repo: str, revision: str | None) -> list[Path]:
    """The asked revision alone; without one, what main points to and then the others, newest first."""
    if not is_repo(repo) or (revision is not None and not is_revision(revision)):
        return []
    root = repository(repo)
    named = commit(root, revision or "main")
    chosen = [root / "snapshots" / named] if named and stat.S_ISDIR(_mode(root / "snapshots" / named)) else []
    if revision is not None:
        return chosen
    others = [each for each in children(root / "snapshots") if _holds(each / "config.json") or variants(each)]
    return chosen + sorted(set(others).difference(chosen), key=_changed, reverse=True)


def repository(repo: str) -> Path:
    """Where the cache keeps a repository, whether it is there or not."""
    return settings.hub_cache() / f"models--{repo.replace('/', '--')}"


def lock_folder(repo: str) -> Path:
    return settings.hub_cache() / ".locks" / repository(repo).name


def commit(root: Path, revision: str) -> str | None:
    """The commit a branch or tag points to; a commit names itself. A refs file may hold one plain name."""
    try:
        with (root / "refs" / revision).open("rb") as file:
            name = file.read(100).decode("ascii", errors="replace").strip()
    except OSError:
        name = revision
    return name if _COMMIT.fullmatch(name) else None


def lack(folder: Path) -> str | None:
    """What a snapshot still needs before it can run, in words; None when it looks whole.

    ModelNotFound where that cannot be told: `pull` would not help.
    """
    if not _holds(folder / "config.json"):
        if not (held := variants(folder)):
            return "its config.json is missing"
        cut = next((each for each in held if not each.whole), None)
        return f"parts of {cut.label} are missing" if cut else None
    names = {file.relative_to(folder).as_posix() for file in model_files(folder)}
    kind = files.container(names)
    present = set(filter(kind.holds, names))
    if not present:
        return "its weights are missing"
    numbered = kind.single not in present and any("-of-" in name for name in present)
    index = None if numbered else _index(folder / kind.index)  # a large file, which numbers make needless
    chosen = files.choose(present, index, lambda: index or ())
    if not chosen:
        return "its weights are missing"
    gone = files.missing(chosen, present)
    return (
        f"{len(gone)} of its {len(gone) + len(present.intersection(chosen))} weight files are missing" if gone else None
    )


def _index(path: Path) -> dict[str, str] | None:
    """None also for one that cannot be read: whoever opens the weights reports that."""
    try:
        return weight_map(path.read_bytes(), path.name)
    except (OSError, CheckpointError):
        return None


def blob_hash(blob: str, size: int) -> _Hash:
    """The running hash a blob is named by: sha256 for a large file, git's sha1 of `size` bytes for a small one."""
    return hashlib.sha256() if len(blob) == 64 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def disk_files(*roots: Path) -> dict[Path, os.stat_result]:
    """What occupies the disk: blobs, unfinished ones too, and files copied where links do not work."""
    paths = [Path(folder, file) for root in roots for folder, _, files in os.walk(root) for file in files]
    found = {path: status(path, follow_symlinks=False) for path in paths}
    return {path: each for path, each in found.items() if each is not None and stat.S_ISREG(each.st_mode)}


def children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _hidden(folder, error) from error


def _holds(file: Path) -> bool:
    return stat.S_ISREG(_mode(file))


def _mode(path: Path) -> int:
    """0 for what is not there. ModelNotFound for what may be there and cannot be looked at."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        if error.errno == errno.ELOOP:
            return 0
        raise _hidden(path, error) from error


def _hidden(path: Path, error: OSError) -> ModelNotFound:
    found = unreadable(path, error)
    return ModelNotFound(found.message, found.hint)


def variants(folder: Path) -> list[Variant]:
    """The models that a snapshot holds as GGUF, whole or in part."""
    return gguf_names.variants(file.relative_to(folder).as_posix() for file in model_files(folder))


def model_files(folder: Path) -> list[Path]:
    """The files of a snapshot: those at its top, the weights of a release and GGUF files inside its folders."""
    files_ = children(folder)
    inside = [file for each in files_ if stat.S_ISDIR(_mode(each)) for file in children(each)]
    kept = [file for file in inside if file.suffix == gguf_names.ENDING or file.parent.name == files.RELEASE_FOLDER]
    return [file for file in (*files_, *kept) if _holds(file)]


def is_repo(name: str) -> bool:
    unsafe = "--" in name or ".." in name or name.endswith(".git") or max(map(len, name.split("/"))) > 96
    return not unsafe and _REPO.fullmatch(name) is not None


def is_revision(text: str) -> bool:
    return len(text) <= 200 and _REVISION.fullmatch(text) is not None


def is_file(path: Path) -> bool:
    found = status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_folder(path: Path) -> bool:
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def _changed(path: Path) -> float:
    found = status(path)
    return found.st_mtime if found else 0


def status(path: Path, follow_symlinks: bool = True) -> os.stat_result | None:
    """None for what is not there, what was renamed a moment ago, and names no file system takes."""
    try:
        return path.stat(follow_symlinks=follow_symlinks)
    except (OSError, ValueError):
        return None
