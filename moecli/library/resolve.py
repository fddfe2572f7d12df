"""The front door: what a MODEL names on this machine, found once per command; no network, ever."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from moecli.checkpoint import gguf_names
from moecli.checkpoint.files import RELEASE_FOLDER
from moecli.errors import ModelNotFound, UsageError, printable
from moecli.formats.words import is_dtype, nearest
from moecli.hub import cache as hub_cache
from moecli.library import address, gguf, stores
from moecli.library.stores import LocalStore
from moecli.model import catalog
from moecli.store import manifest
from moecli.store.packed import PARTIAL, REMOVED, is_partial

_LOG = logging.getLogger(__name__)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_WEIGHT_FILES = (".gguf",)  # single files that hold a whole model
_NAME_FOLDER = "name the folder that holds config.json and the weights"
_NAME_RELEASE = "lay config.json and tokenizer.json of hpcai-tech/grok-1 beside ckpt-0, or type moecli pull grok-1"
_NAME_MODEL = "type an alias such as mixtral, a folder as ./name, or a Hub id as org/name"


class Kind(Enum):
    """What was found under the name."""

    BUILT_IN = "built-in"
    STORE = "store"  # a packed model
    FOLDER = "folder"  # a checkpoint in a folder of the user's
    FILE = "file"  # a whole model in one file
    CONFIG = "config"  # a config.json without weights
    CACHE = "cache"  # a checkpoint in the Hugging Face cache
    CATALOG = "catalog"  # known by its alias; its weights are not here
    HUB = "hub"  # a repository of the Hub that is not here


@dataclass(frozen=True, slots=True)
class ModelRef:
    """One model as a command was given it, and all that its name leads to on this machine.

    `revision` is the one asked for, or pinned by the catalog; `commit` is the one found in the cache.
    """

    typed: str  # as on the command line: what hints repeat
    name: str  # as shown
    kind: Kind
    folder: Path | None = None  # a checkpoint or packed model that can be run; of a file, what it says written out
    file: Path | None = None  # a whole model in one file; or a config.json whose weights are not here
    repo: str | None = None
    revision: str | None = None
    entry: catalog.Entry | None = None
    store: LocalStore | None = None
    dtype: str = "auto"  # asked for: by --dtype, or in the name, as in mixtral:q4
    tokenizer: Path | None = None  # the file or folder that has it, where it is not to be the model's own
    variant: str | None = None  # of a repository of GGUF files: the quantisation of one, or its name

    @property
    def commit(self) -> str | None:
        return self.snapshot.name if self.snapshot else None

    @property
    def snapshot(self) -> Path | None:
        """Where its files lie in the Hugging Face cache: its folder, but for that of a GGUF file."""
        if self.repo is None or self.variant is None or self.file is None:
            return self.folder if self.repo else None
        snapshots = hub_cache.repository(self.repo) / "snapshots"
        return snapshots / self.file.relative_to(snapshots).parts[0]

    @property
    def by_path(self) -> bool:
        """Whether the user named a file or folder."""
        return path_named(self.typed) in (self.folder, self.file)

    @property
    def by_hub_id(self) -> bool:
        """Whether the user named a repository of the Hub, whose own answer then counts."""
        return self.repo is not None and "/" in self.typed

    @property
    def weights(self) -> Path:
        """The folder to run; ModelNotFound where there is none."""
        if self.folder is None:
            raise self.missing()
        return self.folder

    def missing(self) -> ModelNotFound:
        """Why there is nothing to run, and what to type."""
        if self.entry is None and self.repo is None:
            return _no_weights(self)
        from moecli.library import advice  # which begins with what is resolved here

        return advice.missing(self, advice.advice_on(self))


def resolve(model: str, *, dtype: str = "auto", original: bool = False, own_name: bool = False) -> ModelRef:
    """What MODEL names: a path, else the built-in model, an alias, a Hub id, a packed model by its own name.

    An address of the Hub, as people paste it, means its org/name.
    A bare name prefers its packed model: the one in `dtype`, else any; a format that none has is taken from the
    checkpoint, where that is here. `original` is the checkpoint, whatever was packed from it. With `own_name` a packed
    model, finished or not, comes first where it is named itself, and only then. ModelNotFound for what names nothing.
    NAME:q4 and NAME-q4, where that is no name itself, are NAME with that `dtype`.
    """
    if "\0" not in model and not _names_path(model):
        model = address.plain(model)
    try:
        ref = replace(_find(model, dtype, original, own_name), dtype=dtype)
    except ModelNotFound as error:
        name, word = _with_dtype(model)
        if word is None:
            if name != model and (near := nearest(model[len(name) :])):
                raise ModelNotFound(error.message, f"did you mean {name}:{near}?") from None
            raise
        if dtype not in ("auto", word):
            raise UsageError(f"'{_shown(model)}' and --dtype {dtype} cannot both be meant", "leave one out") from None
        found = _find(f"{name}-{word}" if own_name else name, word, original, own_name)
        ref = replace(found, typed=model, dtype=word)
    _LOG.info("%s is %s (%s): folder %s, repository %s", model, ref.name, ref.kind.value, ref.folder, ref.repo)
    return ref


def _find(model: str, dtype: str, original: bool, own_name: bool) -> ModelRef:
    if own_name and model.strip() and (own := _named(model)) is not None:
        return _packed(model, own)
    try:
        ref = _itself(model)
    except ModelNotFound:
        found = None if original or own_name else packed_from((model,), dtype)
        if found is None:
            raise
        return _packed(model, found)
    if original or own_name or "@" in model or _names_path(model):
        return ref
    found = packed_from((ref.name, None if ref.variant else ref.repo), dtype)
    if found is None or (dtype not in ("auto", found.dtype) and ref.folder is not None):
        return ref
    return _packed(model, found, ref.entry)


def _with_dtype(model: str) -> tuple[str, str | None]:
    """NAME:q4, NAME-q4 or NAME:q4-dense-q8 in two, NAME being an alias; the second is None for what is no format."""
    match = re.fullmatch(r"(.+?)[:-](\w+(?:-dense-\w+)?)", model)
    if match is None or not (catalog.find(match[1]) or match[1].casefold() == catalog.BUILT_IN):
        return model, None
    word = "auto" if match[2] == "latest" else match[2].lower()
    return match[1], word if word == "auto" or is_dtype(word) else None


def without_dtype(model: str) -> str:
    """NAME of NAME:q4; any other as it is."""
    name, word = _with_dtype(model)
    return name if word and ":" in model else model


def fetched(ref: ModelRef, snapshot: Path, files: Sequence[str]) -> ModelRef:
    """A model that has just come into the cache: of GGUF, the first of its files is it."""
    if ref.variant is None:
        return replace(ref, kind=Kind.CACHE, folder=snapshot)
    file = snapshot / files[0]
    return replace(ref, kind=Kind.CACHE, folder=gguf.unfolded(file), file=file)


def built_in() -> ModelRef:
    """The model that ships inside the package."""
    folder = Path(__file__).parents[1] / catalog.BUILT_IN
    return ModelRef(
        catalog.BUILT_IN, catalog.BUILT_IN, Kind.BUILT_IN, folder if hub_cache.is_file(folder / "config.json") else None
    )


def known(alias: str) -> ModelRef:
    """A model of the catalog as the catalog knows it, whatever of it is on this machine."""
    entry = catalog.find(alias)
    return ModelRef(alias, entry.alias if entry else alias, Kind.CATALOG, entry=entry)


def _itself(model: str) -> ModelRef:
    """A path, else the built-in model, an alias or a Hub id; nothing that was packed from it."""
    if not model.strip() or "\0" in model:
        raise ModelNotFound(f"'{printable(model, 80)}' cannot be the name of a model", _NAME_MODEL)
    return _from_path(model) if _names_path(model) else _by_name(model)


def path_named(model: str) -> Path:
    try:
        return Path(model).expanduser()
    except RuntimeError:  # ~somebody who is not a user here
        return Path(model)


def _names_path(model: str) -> bool:
    """Whether MODEL is spelled like a path, or such a model lies in the working directory."""
    path = path_named(model)
    spelled = model.startswith((".", "/", "~", "\\")) or _DRIVE.match(model)
    return bool(spelled) or _is_model(path) or (path.suffix in (".json", *_WEIGHT_FILES) and hub_cache.is_file(path))


def _from_path(model: str) -> ModelRef:
    path, shown = path_named(model), printable(str(path_named(model)), 80)
    if hub_cache.is_file(path / manifest.FILE):
        with suppress(OSError):  # a folder that may be entered and not listed can be run
            return ModelRef(model, _folder_name(path), Kind.STORE, path, store=stores.describe(path))
        return ModelRef(model, _folder_name(path), Kind.STORE, path)
    if hub_cache.is_file(path / "config.json"):
        return ModelRef(model, _folder_name(path), Kind.FOLDER, path)
    if hub_cache.is_folder(path):
        hint = _NAME_RELEASE if hub_cache.is_folder(path / RELEASE_FOLDER) else _NAME_FOLDER
        raise ModelNotFound(f"the folder '{shown}' holds no config.json", hint)
    if not hub_cache.is_file(path):
        raise ModelNotFound(f"there is no folder '{shown}'")
    if path.suffix in _WEIGHT_FILES:
        return ModelRef(model, path.stem, Kind.FILE, gguf.unfolded(path), path)
    if path.suffix != ".json":
        raise _is_a_file(shown)
    name = _folder_name(path.parent) if path.name == "config.json" else path.stem
    return ModelRef(model, name, Kind.CONFIG, file=path)


def _by_name(model: str) -> ModelRef:
    """The built-in model, an alias or a Hub id."""
    if model.casefold() == catalog.BUILT_IN:
        return replace(built_in(), typed=model)
    name, at, revision = model.partition("@")
    name, _, variant = name.partition(":") if "/" in name else (name, "", "")
    entry = None if variant else catalog.find(name)
    repo = entry.repo if entry else name if hub_cache.is_repo(name) else None
    if entry is None and repo is None:
        raise _unknown(model)
    if at and not hub_cache.is_revision(revision):
        raise ModelNotFound(f"'{printable(revision, 80)}' is not a revision", "write org/name@branch, @tag or @commit")
    asked = revision or (entry.revision if entry else None)
    snapshots = hub_cache.snapshots(repo, asked) if repo else []
    if variant or (repo and _holds_one_gguf(snapshots)):
        assert repo is not None
        return _of_gguf(model, repo, variant, asked, snapshots)
    folder = next((each for each in snapshots if hub_cache.lack(each) is None), None)
    config = snapshots[0] / "config.json" if snapshots and folder is None else None
    return ModelRef(
        typed=model,
        name=entry.alias if entry else name,
        kind=Kind.CACHE if folder else Kind.CATALOG if entry else Kind.HUB,
        folder=folder,
        file=config if config and hub_cache.is_file(config) else None,
        repo=repo,
        revision=asked,
        entry=entry,
    )


def _holds_one_gguf(snapshots: list[Path]) -> bool:
    """Whether what is here of a repository is one GGUF model and nothing else."""
    first = snapshots[0] if snapshots else None
    return first is not None and not hub_cache.is_file(first / "config.json") and len(hub_cache.variants(first)) == 1


def _of_gguf(model: str, repo: str, variant: str, revision: str | None, snapshots: list[Path]) -> ModelRef:
    """A GGUF model of a repository: in the newest snapshot that holds all of it, or on the Hub."""
    variant = variant or hub_cache.variants(snapshots[0])[0].label
    ref = ModelRef(model, f"{repo}:{variant}", Kind.HUB, repo=repo, revision=revision, variant=variant)
    for snapshot in snapshots:
        with suppress(ModelNotFound):
            chosen = gguf_names.choose(hub_cache.variants(snapshot), variant, repo)
            if chosen.whole:
                return fetched(ref, snapshot, chosen.files)
    return ref


def _packed(model: str, store: LocalStore, entry: catalog.Entry | None = None) -> ModelRef:
    return ModelRef(model, store.name, Kind.STORE, store.path, entry=entry, store=store)


def _named(model: str) -> LocalStore | None:
    """The packed model, finished, unfinished or half deleted, whose own name or path this is."""
    folder = path_named(model)
    known = {store.name.casefold(): store for store in stores.local_stores()}
    for name in (model, model.removesuffix(PARTIAL) + REMOVED):
        if name.casefold() in known:
            return known[name.casefold()]
    if hub_cache.is_file(folder / manifest.FILE) or (is_partial(folder) and hub_cache.is_folder(folder)):
        return stores.described(folder)
    return stores.being_removed(folder) if folder.name else None


def packed_from(names: tuple[str | None, ...], dtype: str) -> LocalStore | None:
    """A finished one of that name, or packed from a model of that name: in `dtype` if there is one, else any."""
    complete = [store for store in stores.local_stores() if store.complete]
    for word in (name.casefold() for name in names if name):
        found = [each for each in complete if word in map(str.casefold, (each.name, each.model, each.source))]
        if found:
            return next((store for store in found if store.dtype == dtype), found[0])
    return None


def _no_weights(ref: ModelRef) -> ModelNotFound:
    name = ref.name
    if ref.file is not None:
        return ModelNotFound(f"'{_shown(str(ref.file))}' is a configuration without weights", _NAME_FOLDER)
    return ModelNotFound(f"the built-in model '{name}' is missing from this installation", "reinstall moecli")


def _is_a_file(shown: str) -> ModelNotFound:
    return ModelNotFound(f"'{shown}' is a file, not a folder", _NAME_FOLDER)


def _unknown(model: str) -> ModelNotFound:
    near = catalog.nearest(model.partition("@")[0])
    if hub_cache.is_folder(Path(model)):
        hint = f"the folder '{_shown(model)}' holds no config.json"
    elif near:
        hint = f"did you mean {', '.join(near)}?"
    else:
        hint = _NAME_MODEL
    return ModelNotFound(f"no model is called '{_shown(model)}'", hint)


def _is_model(folder: Path) -> bool:
    """A checkpoint holds config.json, a packed model its manifest."""
    return hub_cache.is_file(folder / "config.json") or hub_cache.is_file(folder / manifest.FILE)


def _folder_name(path: Path) -> str:
    """The name the user gave a folder, not where it links to; `.` and `..` have no name of their own."""
    return path.name if path.name not in ("", "..") else path.resolve().name


def _shown(text: str) -> str:
    """Short enough for one line."""
    return printable(text, 80)
