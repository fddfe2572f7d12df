"""Where a MODEL lies on this machine: paths, aliases and the Hugging Face cache; no network, ever."""

from __future__ import annotations

import json
import os
import re
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from moecli import catalog, settings
from moecli.errors import ModelNotFound

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_REPO = re.compile(rf"{_PART}/{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
_COMMIT = re.compile(r"[0-9A-Za-z]{1,64}")
_SHARD = re.compile(r"(.+)-[0-9]+-of-([0-9]+)\.safetensors")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_NAME_FOLDER = "name the folder that holds config.json and its .safetensors files"
_NAME_MODEL = "type an alias such as mixtral, a folder as ./name, or a Hub id as org/name"


@dataclass(frozen=True, slots=True)
class Source:
    """What a MODEL names. `folder` can be run; `config_file` is a configuration whose weights are not here.

    `revision` is the one asked for, or pinned by the catalog; `commit` is the one found in the cache.
    """

    name: str
    folder: Path | None = None
    config_file: Path | None = None
    entry: catalog.Entry | None = None
    repo: str | None = None
    revision: str | None = None

    @property
    def commit(self) -> str | None:
        return self.folder.name if self.repo and self.folder else None


@dataclass(frozen=True, slots=True)
class LocalModel:
    """One repository in the Hugging Face cache; `path` is the revision in use, `bytes` counts all of them."""

    name: str
    repo: str
    revision: str | None
    path: Path
    bytes: int
    complete: bool


def resolve(model: str) -> Source:
    """What MODEL names: a path, else the built-in model, an alias, a Hub id. Never asks the network."""
    if not model.strip() or "\0" in model:
        raise ModelNotFound(f"'{_shown(model)}' cannot be the name of a model", _NAME_MODEL)
    if (path := _as_path(model)) is not None:
        return _from_path(path)
    if model.casefold() == catalog.BUILT_IN:
        folder = Path(__file__).parent / catalog.BUILT_IN
        return Source(catalog.BUILT_IN, folder=folder if _is_model(folder) else None)
    name, at, revision = model.partition("@")
    entry = catalog.find(name)
    repo = entry.repo if entry else name if _is_repo(name) else None
    if entry is None and repo is None:
        raise _unknown(model)
    if at and not _is_revision(revision):
        raise ModelNotFound(f"'{_shown(revision)}' is not a revision", "write org/name@branch, @tag or @commit")
    if entry is None:
        return _from_cache(name, None, repo, revision or None)
    return _from_cache(entry.alias, entry, repo, revision or entry.revision)


def require_folder(source: Source) -> Path:
    """The folder to run, or ModelNotFound that says what is missing and what to type."""
    if source.folder is not None:
        return source.folder
    if source.repo is None:
        raise _no_weights(source)
    label = f"model '{source.name}'" + (f" ({source.repo})" if source.name != source.repo else "")
    wanted = source.name + (f"@{source.revision}" if source.revision else "")
    pull = f"moecli pull {wanted}"
    partial = next(iter(_snapshots(source.repo, source.revision)), None)
    if partial is not None and _holds_pickles(partial):
        hint = "look for a release in safetensors format"
        raise ModelNotFound(f"{label} is here only as pickle files, which are never loaded", hint)
    if partial is not None:
        raise ModelNotFound(f"{label} is only partly on this machine: {_lack(partial)}", pull)
    if source.revision is not None:
        raise ModelNotFound(f"{label} is not on this machine at revision {source.revision}", pull)
    if any(blob.suffix == ".incomplete" for blob in _children(_cache_folder(source.repo) / "blobs")):
        raise ModelNotFound(f"{label} is only partly on this machine: its download was not finished", pull)
    raise ModelNotFound(f"{label} is not on this machine", pull)


def snapshot(repo: str, revision: str | None = None) -> Path | None:
    """The newest whole-looking snapshot of a repository in the Hugging Face cache."""
    return next((folder for folder in _snapshots(repo, revision) if _lack(folder) is None), None)


def local_models() -> list[LocalModel]:
    """Every model repository in the Hugging Face cache, by name."""
    models = []
    for root in _children(settings.hub_cache()):
        kind, *parts = root.name.split("--")
        repo = "/".join(parts)
        size = _disk_bytes(root) if kind == "models" and _is_repo(repo) else 0
        if not size:
            continue
        best = snapshot(repo) or next(iter(_snapshots(repo, None)), None)
        entry = catalog.find(repo)
        name = entry.alias if entry and entry.repo == repo else repo
        complete = best is not None and _lack(best) is None
        models.append(LocalModel(name, repo, best.name if best else None, best or root, size, complete))
    return sorted(models, key=lambda model: model.name.casefold())


def _as_path(model: str) -> Path | None:
    """MODEL as a path when it is spelled like one, or when such a model lies in the working directory."""
    try:
        path = Path(model).expanduser()
    except RuntimeError:  # ~somebody who is not a user here
        path = Path(model)
    spelled = model.startswith((".", "/", "~", "\\")) or _DRIVE.match(model)
    here = _is_model(path) or (path.suffix == ".json" and _is_file(path))
    return path if spelled or here else None


def _from_path(path: Path) -> Source:
    shown = _shown(str(path))
    if _is_model(path):
        return Source(_folder_name(path), folder=path)
    if _is_folder(path):
        raise ModelNotFound(f"the folder '{shown}' holds no config.json", _NAME_FOLDER)
    if not _is_file(path):
        raise ModelNotFound(f"there is no folder '{shown}'")
    if path.suffix != ".json":
        raise ModelNotFound(f"'{shown}' is a file, not a folder", _NAME_FOLDER)
    return Source(_folder_name(path.parent) if path.name == "config.json" else path.stem, config_file=path)


def _from_cache(name: str, entry: catalog.Entry | None, repo: str | None, revision: str | None) -> Source:
    folder = snapshot(repo, revision) if repo else None
    partial = next(iter(_snapshots(repo, revision)), None) if repo and folder is None else None
    config = partial / "config.json" if partial else None
    config_file = config if config and _is_file(config) else None
    return Source(name, folder, config_file, entry, repo, revision)


def _unknown(model: str) -> ModelNotFound:
    near = catalog.nearest(model.partition("@")[0])
    if _is_folder(Path(model)):
        hint = f"the folder '{_shown(model)}' holds no config.json"
    elif near:
        hint = f"did you mean {', '.join(near)}?"
    else:
        hint = _NAME_MODEL
    return ModelNotFound(f"no model is called '{_shown(model)}'", hint)


def _no_weights(source: Source) -> ModelNotFound:
    name = source.name
    if source.config_file is not None:
        file = _shown(str(source.config_file))
        return ModelNotFound(f"'{file}' is a configuration without weights", _NAME_FOLDER)
    if source.entry is not None:
        return ModelNotFound(f"no weights of '{name}' were ever published", f"moecli inspect {name}")
    return ModelNotFound(f"the built-in model '{name}' is missing from this installation", "reinstall moecli")


def _snapshots(repo: str, revision: str | None) -> list[Path]:
    """The asked revision alone; without one, what main points to and then the others, newest first."""
    if not _is_repo(repo) or (revision is not None and not _is_revision(revision)):
        return []
    root = _cache_folder(repo)
    commit = _commit(root, revision or "main")
    chosen = [root / "snapshots" / commit] if commit and _is_folder(root / "snapshots" / commit) else []
    if revision is not None:
        return chosen
    others = [folder for folder in _children(root / "snapshots") if _is_file(folder / "config.json")]
    return chosen + sorted(set(others).difference(chosen), key=_changed, reverse=True)


def _cache_folder(repo: str) -> Path:
    return settings.hub_cache() / f"models--{repo.replace('/', '--')}"


def _commit(root: Path, revision: str) -> str | None:
    """The commit a branch or tag points to; a commit names itself. A refs file may hold one plain name."""
    try:
        with (root / "refs" / revision).open("rb") as file:
            commit = file.read(100).decode("ascii", errors="replace").strip()
    except OSError:
        commit = revision
    return commit if _COMMIT.fullmatch(commit) else None


def _lack(folder: Path) -> str | None:
    """What a snapshot still needs before it can run, in words; None when it looks whole."""
    if not _is_file(folder / "config.json"):
        return "its config.json is missing"
    files = [file for file in _children(folder) if file.suffix == ".safetensors"]
    present = {file.name for file in files if _is_file(file)}
    if not present:
        return "its weights are missing"
    shards = Counter((match[1], int(match[2])) for name in present if (match := _SHARD.fullmatch(name)))
    if shards:
        missing, total = min((total - count, total) for (_, total), count in shards.items())
    else:
        expected = _indexed(folder / "model.safetensors.index.json")
        missing, total = len(expected - present), len(expected)
    return f"{missing} of its {total} weight files are missing" if missing > 0 else None


def _indexed(index: Path) -> set[str]:
    """The weight files an index names; none if it cannot be read: whoever opens the weights reports that."""
    try:
        return {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()


def _holds_pickles(folder: Path) -> bool:
    files = {file.suffix for file in _children(folder)}
    return ".safetensors" not in files and not files.isdisjoint(_PICKLES)


def _disk_bytes(root: Path) -> int:
    """What a repository occupies: blobs, unfinished ones too, and files copied where links do not work."""
    folders = [*os.walk(root / "blobs"), *os.walk(root / "snapshots")]
    found = [_status(Path(folder, file), follow_symlinks=False) for folder, _, files in folders for file in files]
    return sum(status.st_size for status in found if status is not None and stat.S_ISREG(status.st_mode))


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ModelNotFound(f"'{folder}' cannot be read: {error.strerror}") from error


def _is_model(folder: Path) -> bool:
    """A checkpoint holds config.json, a packed store manifest.json."""
    return _is_file(folder / "config.json") or _is_file(folder / "manifest.json")


def _is_file(path: Path) -> bool:
    status = _status(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def _is_folder(path: Path) -> bool:
    status = _status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def _changed(path: Path) -> float:
    status = _status(path)
    return status.st_mtime if status else 0


def _status(path: Path, follow_symlinks: bool = True) -> os.stat_result | None:
    """None for what is not there, what was renamed a moment ago, and names no file system takes."""
    try:
        return path.stat(follow_symlinks=follow_symlinks)
    except (OSError, ValueError):
        return None


def _folder_name(path: Path) -> str:
    """The name the user gave a folder, not where it links to; `.` and `..` have no name of their own."""
    return path.name if path.name not in ("", "..") else path.resolve().name


def _is_repo(name: str) -> bool:
    unsafe = "--" in name or ".." in name or name.endswith(".git") or max(map(len, name.split("/"))) > 96
    return not unsafe and _REPO.fullmatch(name) is not None


def _is_revision(text: str) -> bool:
    return len(text) <= 200 and _REVISION.fullmatch(text) is not None


def _shown(text: str) -> str:
    """Text of a stranger, safe for a terminal and short enough for one line."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= 80 else f"{text[:77]}..."
