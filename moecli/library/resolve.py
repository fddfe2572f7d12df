"""Where a MODEL lies on this machine: paths, aliases and the Hugging Face cache; no network, ever."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from moecli.errors import ModelNotFound
from moecli.hub import cache as hub_cache
from moecli.model import catalog
from moecli.untrusted import printable

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
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
    def packed(self) -> bool:
        """Whether the folder is a packed store."""
        return self.folder is not None and hub_cache.is_file(self.folder / "manifest.json")

    @property
    def commit(self) -> str | None:
        return self.folder.name if self.repo and self.folder else None


def resolve(model: str) -> Source:
    """What MODEL names: a path, else the built-in model, an alias, a Hub id. Never asks the network."""
    if not model.strip() or "\0" in model:
        raise ModelNotFound(f"'{_shown(model)}' cannot be the name of a model", _NAME_MODEL)
    if (path := _as_path(model)) is not None:
        return _from_path(path)
    if model.casefold() == catalog.BUILT_IN:
        folder = Path(__file__).parents[1] / catalog.BUILT_IN
        return Source(catalog.BUILT_IN, folder=folder if _is_model(folder) else None)
    name, at, revision = model.partition("@")
    entry = catalog.find(name)
    repo = entry.repo if entry else name if hub_cache.is_repo(name) else None
    if entry is None and repo is None:
        raise _unknown(model)
    if at and not hub_cache.is_revision(revision):
        raise ModelNotFound(f"'{_shown(revision)}' is not a revision", "write org/name@branch, @tag or @commit")
    if entry is None:
        return _from_cache(name, None, repo, revision or None)
    return _from_cache(entry.alias, entry, repo, revision or entry.revision)


def is_path(model: str) -> bool:
    """Whether MODEL names a file or folder."""
    return _as_path(model) is not None


def require_folder(source: Source) -> Path:
    """The folder to run, or ModelNotFound that says what is missing and what to type."""
    if source.folder is not None:
        return source.folder
    if source.repo is None:
        raise _no_weights(source)
    label = f"model '{source.name}'" + (f" ({source.repo})" if source.name != source.repo else "")
    wanted = source.name + (f"@{source.revision}" if source.revision else "")
    pull = f"moecli pull {wanted}"
    partial = next(iter(hub_cache.snapshots(source.repo, source.revision)), None)
    if partial is not None and hub_cache.holds_pickles(partial):
        hint = "look for a release in safetensors format"
        raise ModelNotFound(f"{label} is here only as pickle files, which are never loaded", hint)
    if partial is not None:
        raise ModelNotFound(f"{label} is only partly on this machine: {hub_cache.lack(partial)}", pull)
    if source.revision is not None:
        raise ModelNotFound(f"{label} is not on this machine at revision {source.revision}", pull)
    blobs = hub_cache.children(hub_cache.repository(source.repo) / "blobs")
    if any(blob.suffix == hub_cache.UNFINISHED for blob in blobs):
        raise ModelNotFound(f"{label} is only partly on this machine: its download was not finished", pull)
    raise ModelNotFound(f"{label} is not on this machine", pull)


def _as_path(model: str) -> Path | None:
    """MODEL as a path when it is spelled like one, or when such a model lies in the working directory."""
    try:
        path = Path(model).expanduser()
    except RuntimeError:  # ~somebody who is not a user here
        path = Path(model)
    spelled = model.startswith((".", "/", "~", "\\")) or _DRIVE.match(model)
    here = _is_model(path) or (path.suffix == ".json" and hub_cache.is_file(path))
    return path if spelled or here else None


def _from_path(path: Path) -> Source:
    shown = _shown(str(path))
    if _is_model(path):
        return Source(_folder_name(path), folder=path)
    if hub_cache.is_folder(path):
        raise ModelNotFound(f"the folder '{shown}' holds no config.json", _NAME_FOLDER)
    if not hub_cache.is_file(path):
        raise ModelNotFound(f"there is no folder '{shown}'")
    if path.suffix != ".json":
        raise ModelNotFound(f"'{shown}' is a file, not a folder", _NAME_FOLDER)
    return Source(_folder_name(path.parent) if path.name == "config.json" else path.stem, config_file=path)


def _from_cache(name: str, entry: catalog.Entry | None, repo: str | None, revision: str | None) -> Source:
    folder = hub_cache.snapshot(repo, revision) if repo else None
    partial = next(iter(hub_cache.snapshots(repo, revision)), None) if repo and folder is None else None
    config = partial / "config.json" if partial else None
    config_file = config if config and hub_cache.is_file(config) else None
    return Source(name, folder, config_file, entry, repo, revision)


def _unknown(model: str) -> ModelNotFound:
    near = catalog.nearest(model.partition("@")[0])
    if hub_cache.is_folder(Path(model)):
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


def _is_model(folder: Path) -> bool:
    """A checkpoint holds config.json, a packed store manifest.json."""
    return hub_cache.is_file(folder / "config.json") or hub_cache.is_file(folder / "manifest.json")


def _folder_name(path: Path) -> str:
    """The name the user gave a folder, not where it links to; `.` and `..` have no name of their own."""
    return path.name if path.name not in ("", "..") else path.resolve().name


def _shown(text: str) -> str:
    """Short enough for one line."""
    return printable(text, 80)
