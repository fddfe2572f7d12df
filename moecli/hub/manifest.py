"""Which files of a Hub repository a model needs, with their sizes and hashes, at one commit."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecli.checkpoint import gguf, gguf_names
from moecli.checkpoint.files import CONTAINERS, RELEASE, choose, container, cut_apart, names_in, no_weights
from moecli.checkpoint.gguf_names import Variant
from moecli.checkpoint.stored import StoredTensor
from moecli.errors import CheckpointError, ModelNotFound, NetworkError
from moecli.hub import bounds, client
from moecli.hub.cache import BLOB_NAME, blob_hash, repository, status
from moecli.hub.headers import Repository, json_on_hub, no_config, read_index, shards
from moecli.hub.retry import RetryPolicy, Tell, retry
from moecli.model import catalog
from moecli.model.catalog import Entry
from moecli.model.gguf import config_of
from moecli.text.files import is_text, tokenizer_among
from moecli.text.gguf import tokenizer_in

_INDICES = tuple(each.index for each in CONTAINERS)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file as the Hub announces it; `hash` names its blob in the cache and is checked."""

    name: str
    size: int
    hash: str

    def is_of(self, data: bytes) -> bool:
        """Whether these are the bytes that were listed."""
        digest = blob_hash(self.hash, self.size)
        digest.update(data)
        return len(data) == self.size and digest.hexdigest() == self.hash


@dataclass(frozen=True, slots=True)
class DownloadManifest:
    """What a model needs of its repository: small files first, weights in the order of their names."""

    repo: str
    revision: str  # as asked for: a branch, a tag or a commit
    commit: str
    texts: tuple[RemoteFile, ...]
    weights: tuple[RemoteFile, ...]
    config: Mapping[str, Any]
    licence: str | None
    gated: bool
    index: Mapping[str, str] | None = None  # which file holds a tensor, where that must be said
    supplied_by: Entry | None = None  # the entry that knows what the repository lacks: configuration, tokenizer
    tokenizer: str | None = None  # the kind of file that a GGUF file's own tokenizer becomes
    tensors: Mapping[str, StoredTensor] | None = None  # what its headers say, where they were read already

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        return self.texts + self.weights

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def root(self) -> Path:
        return repository(self.repo)

    @property
    def snapshot(self) -> Path:
        return self.root / "snapshots" / self.commit

    def blob(self, file: RemoteFile) -> Path:
        return self.root / "blobs" / file.hash


def read_manifest(
    repo: str,
    revision: str | None = None,
    policy: RetryPolicy | None = None,
    tell: Tell | None = None,
    variant: str | None = None,
) -> DownloadManifest:
    """Ask the Hub; nothing is written. NetworkError if it says no, CheckpointError if the answer cannot be right.

    `variant`: the quantisation or the name of a GGUF file; ModelNotFound where the repository holds no such one.
    """
    policy = policy or RetryPolicy(attempts=4)
    info, commit, listed = _listing(repo, revision, policy, tell)
    if variant is not None:
        chosen = gguf_names.choose(gguf_names.variants(listed), variant, repo)
        files = tuple(map(listed.__getitem__, chosen.files))
        return _of_gguf(repo, revision or "main", commit, files, info, policy, tell)
    source = Repository(repo, commit)

    def read(name: str, largest: int) -> bytes | None:
        """A small file, from the cache if it is there."""
        if name not in listed:
            return None
        here = status(repository(repo) / "blobs" / listed[name].hash)
        if here is not None and here.st_size == listed[name].size <= largest:
            return (repository(repo) / "blobs" / listed[name].hash).read_bytes()
        piece = retry(lambda: source.fetch(name, largest), policy, tell=tell)
        if piece is not None and not listed[name].is_of(piece.data):
            raise CheckpointError(f"{name} of {repo} is not the file that the Hub lists", "try again later")
        return piece.data if piece else None

    kind = container(listed)

    def in_single() -> Collection[str]:
        header = retry(lambda: source.header(kind.single, 0), policy, tell=tell)
        return header[0].keys() if header else ()

    content = read(kind.index, bounds.LARGEST_INDEX)
    index = None if content is None else read_index(repo, content)
    weights = _weights(repo, listed.keys(), index, in_single)
    if weights == [kind.single]:
        index = None
    text = read("config.json", bounds.LARGEST_CONFIG)
    entry = catalog.find(repo) or catalog.port(repo)
    if text is not None:
        config = json_on_hub(text, "config.json")
    elif entry is not None and kind is RELEASE:
        config = entry.config()
    else:
        raise no_config(repo, listed)
    needless = set(_INDICES).difference([kind.index] if index is not None else [])
    texts = [name for name in _texts(listed) if name not in needless]
    if large := next((name for name in texts if listed[name].size > bounds.LARGEST_TEXT), None):
        raise CheckpointError(f"{large} of {repo} has {listed[large].size} bytes, which cannot be right")
    lacks = text is None or (entry is not None and entry.tokenizer and tokenizer_among(listed) is None)
    return DownloadManifest(
        repo, revision or "main", commit, tuple(map(listed.__getitem__, texts)),
        tuple(map(listed.__getitem__, weights)), config, _licence(info),
        bool(info.get("gated")), index, entry if lacks else None,
    )  # fmt: skip


def _licence(info: Mapping[str, Any]) -> str | None:
    tags = info.get("tags")
    found = (str(tag)[8:] for tag in (tags if isinstance(tags, list) else ()) if str(tag).startswith("license:"))
    return _plain(next(found, ""))


def _of_gguf(
    repo: str, revision: str, commit: str, files: tuple[RemoteFile, ...], info: Mapping[str, Any], policy: RetryPolicy,
    tell: Tell | None,
) -> DownloadManifest:  # fmt: skip
    """That of the files of one GGUF model, by their heads: of the cache where they are there, else by range."""
    if len(files) < len(names := gguf_names.parts_of(files[0].name)):
        raise CheckpointError(f"{repo} holds {len(files)} of the {len(names)} parts of {files[0].name}")
    hub, snapshot = Repository(repo, commit), repository(repo) / "snapshots" / commit

    def head(file: RemoteFile) -> gguf.Header:
        here = status(snapshot / file.name)
        if here is not None and here.st_size == file.size:
            return gguf.read_file(snapshot / file.name)
        found = retry(lambda: hub.gguf_head(file.name), policy, tell=tell)
        if found is None:
            raise CheckpointError(f"{repo} lists '{file.name}' and does not hold it", "try again later")
        return found[0]

    model = gguf.assembled({Path(file.name): head(file) for file in files})
    return DownloadManifest(
        repo, revision, commit, (), files, config_of(model.metadata, model.shapes), _licence(info),
        bool(info.get("gated")), tokenizer=tokenizer_in(model.metadata), tensors=model.tensors,
    )  # fmt: skip


def list_variants(repo: str, revision: str | None) -> tuple[str, dict[Variant, int]]:
    """The commit of a repository, and its GGUF models with their bytes. ModelNotFound if it holds none."""
    _, commit, listed = _listing(repo, revision, RetryPolicy(attempts=4), None)
    found = {each: sum(listed[name].size for name in each.files) for each in gguf_names.variants(listed) if each.whole}
    if not found:
        raise ModelNotFound(f"{repo} holds no GGUF files", f"moecli memory {repo}")
    return commit, found


def tokenizer_manifest(repo: str, revision: str | None, policy: RetryPolicy) -> DownloadManifest:
    """What a tokenizer needs of a repository, and nothing else. NetworkError if it holds none that can be read."""
    _, commit, listed = _listing(repo, revision, policy, None)
    if tokenizer_among(listed) is None:
        raise NetworkError(f"{repo} holds no tokenizer that can be read", "name another repository, a folder or a file")
    names = [name for name in _texts(listed) if name not in _INDICES]
    if large := next((name for name in names if listed[name].size > bounds.LARGEST_TEXT), None):
        raise CheckpointError(f"{large} of {repo} has {listed[large].size} bytes, which cannot be right")
    texts = tuple(map(listed.__getitem__, names))
    return DownloadManifest(repo, revision or "main", commit, texts, (), {}, None, False)


def read_texts(repo: str, policy: RetryPolicy) -> tuple[str, dict[str, RemoteFile]]:
    """The commit that a repository is at, and its files by name, none of which has to be of weights."""
    _, commit, listed = _listing(repo, None, policy, None)
    return commit, listed


def _listing(
    repo: str, revision: str | None, policy: RetryPolicy, tell: Tell | None
) -> tuple[dict[str, Any], str, dict[str, RemoteFile]]:
    info = retry(lambda: client.listing(repo, revision), policy, tell=tell)
    listed = {file.name: file for file in _listed(repo, info)}
    commit = info.get("sha")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise CheckpointError(f"the Hub names no commit of {repo}")
    return info, commit, listed


def list_files(repo: str, commit: str | None) -> list[str]:
    """The names at the top of a repository, and those of GGUF files inside it."""
    return [file.name for file in _listed(repo, retry(lambda: client.listing(repo, commit), RetryPolicy(attempts=4)))]


def cached_manifest(repo: str, snapshot: Path, files: Collection[str] = ()) -> DownloadManifest:
    """The same from what a snapshot in the cache holds, without asking anybody; no branch is asked for.

    CheckpointError if it cannot be read. A file that is no link to its blob has no hash here. `files`: of a GGUF model.
    """
    try:
        held = {
            name: RemoteFile(name, path.stat().st_size, path.readlink().name if path.is_symlink() else "")
            for name in sorted(files or names_in(snapshot))
            if (path := snapshot / name).is_file()
        }
        if files:
            return _of_gguf(repo, snapshot.name, snapshot.name, tuple(held.values()), {}, RetryPolicy(attempts=1), None)
        config = (snapshot / "config.json").read_bytes()
    except OSError as error:
        raise CheckpointError(f"{snapshot} cannot be read: {error.strerror}") from error
    return DownloadManifest(
        repo, snapshot.name, snapshot.name, tuple(held[name] for name in _texts(held)),
        tuple(map(held.__getitem__, sorted(_held(held)))), json_on_hub(config, "config.json"),
        None, False,
    )  # fmt: skip


def _texts(names: Collection[str]) -> list[str]:
    """The small files among these names that a model needs or is kept with, config.json first."""
    return sorted((name for name in names if is_text(name) or name in _INDICES), key=lambda n: (n != "config.json", n))


def _listed(repo: str, info: Mapping[str, Any]) -> list[RemoteFile]:
    """Every file at the top of the repository, the weights of a release in their folder, and GGUF files in theirs.

    A name that git cannot hold proves that the server lies.
    """
    siblings = info.get("siblings")
    if not isinstance(siblings, list) or not all(isinstance(each, dict) for each in siblings):
        raise CheckpointError(f"the Hub lists no files of {repo}", "is HF_ENDPOINT right?")
    files = []
    for each in siblings:
        name, size, lfs = each.get("rfilename"), each.get("size"), each.get("lfs")
        parts = name.split("/") if isinstance(name, str) else [".."]
        if not {"", ".", ".."}.isdisjoint(parts) or "\\" in name or not name.isprintable():
            raise CheckpointError(f"{repo} names the file {str(name)[:80]!a}, which is outside its folder")
        if max(len(part.encode()) for part in parts) > bounds.LONGEST_NAME:
            raise CheckpointError(f"{repo} names the file '{name[:80]}...', which no disk can hold")
        if len(parts) > 1 and not (RELEASE.holds(name) or name.endswith(gguf_names.ENDING)):
            continue
        blob = str((lfs.get("sha256") if isinstance(lfs, dict) else None) or each.get("blobId"))
        if type(size) is not int or not 0 <= size < 2**50 or not BLOB_NAME.fullmatch(blob):
            raise CheckpointError(f"the Hub tells no size or no hash of {name} of {repo}")
        files.append(RemoteFile(name, size, blob))
    return files


def _weights(
    repo: str, names: Collection[str], index: Mapping[str, str] | None, in_single: Callable[[], Collection[str]]
) -> list[str]:
    """The files that hold the model, by the rule that opens a folder."""
    if index is not None:
        shards(repo, index)
    held = _held(names)
    chosen = choose(held, index, in_single)
    if not chosen:
        raise no_weights(names, repo)
    if index is None and (cut := cut_apart(chosen)):
        entry = catalog.port(repo)
        raise CheckpointError(cut.message, f"the same model, whole: moecli pull {entry.alias}" if entry else cut.hint)
    if lost := next((name for name in chosen if name not in held), None):
        raise CheckpointError(f"the index of {repo} names '{lost[:80]}', which it does not hold")
    return chosen


def _held(names: Iterable[str]) -> set[str]:
    """The files of weights among these."""
    kind = container(names := list(names))
    return {name for name in names if kind.holds(name) and (kind is RELEASE or _PLAIN_NAME.fullmatch(name))}


def _plain(text: str) -> str | None:
    """A stranger's word, safe for a terminal."""
    return text[:40] if text and text.isprintable() else None
