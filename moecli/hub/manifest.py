"""Which files of a Hub repository a model needs, with their sizes and hashes, at one commit."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecli import settings
from moecli.checkpoint.files import INDEX, SINGLE, choose, no_weights, weight_map
from moecli.errors import CheckpointError, NetworkError
from moecli.hub import client
from moecli.hub.cache import BLOB_NAME, repository, status
from moecli.hub.headers import LARGEST_CONFIG, LARGEST_INDEX, Repository, json_on_hub, shards
from moecli.hub.retry import RetryPolicy, Tell, retry

_LOG = logging.getLogger(__name__)
_TEXTS = (
    "config.json", "generation_config.json", INDEX, "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_OTHER_TOKENIZERS = ("vocab.json", "merges.txt", "tokenizer.model", "tiktoken.model", "tekken.json")
_WEIGHTS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\.safetensors")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LARGEST_TEXT = 512 * 1024**2


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file as the Hub announces it; `hash` names its blob in the cache and is checked."""

    name: str
    size: int
    hash: str


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
    repo: str, revision: str | None = None, policy: RetryPolicy | None = None, tell: Tell | None = None
) -> DownloadManifest:
    """Ask the Hub; nothing is written. NetworkError if it says no, CheckpointError if the answer cannot be right."""
    client.check_endpoint()
    if settings.offline():
        raise NetworkError(f"'{repo}' is on the Hub, and the network is not to be used", "unset HF_HUB_OFFLINE")
    policy = policy or RetryPolicy(attempts=4)
    info = retry(lambda: _ask(repo, revision), policy, tell=tell)
    listed = {file.name: file for file in _listed(repo, info)}
    if not _COMMIT.fullmatch(info.sha or ""):
        raise CheckpointError(f"the Hub names no commit of {repo}")
    source = Repository(repo, info.sha)

    def read(name: str, largest: int) -> bytes | None:
        """A small file, from the cache if it is there."""
        if name not in listed:
            return None
        here = status(repository(repo) / "blobs" / listed[name].hash)
        if here is not None and here.st_size == listed[name].size <= largest:
            return (repository(repo) / "blobs" / listed[name].hash).read_bytes()
        piece = retry(lambda: source.fetch(name, largest), policy, tell=tell)
        return piece.data if piece else None

    def in_single() -> Collection[str]:
        header = retry(lambda: source.header(SINGLE, 0), policy, tell=tell)
        return header[0].keys() if header else ()

    content = read(INDEX, LARGEST_INDEX)
    index = None if content is None else weight_map(content, f"{INDEX} of {repo}")
    weights = _weights(repo, listed.keys(), index, in_single)
    if weights == [SINGLE]:
        index = None
    config = read("config.json", LARGEST_CONFIG)
    if config is None:
        raise NetworkError(f"{repo} holds no config.json", "only models in transformers' format can be used")
    texts = [name for name in _TEXTS if name in listed and (name != INDEX or index is not None)]
    if "tokenizer.json" not in listed:
        texts += [name for name in listed if name in _OTHER_TOKENIZERS or name.endswith(".tiktoken")]
    if large := next((name for name in texts if listed[name].size > _LARGEST_TEXT), None):
        raise CheckpointError(f"{large} of {repo} has {listed[large].size} bytes, which cannot be right")
    licences = (str(tag)[8:] for tag in info.tags or () if str(tag).startswith("license:"))
    return DownloadManifest(
        repo, revision or "main", info.sha, tuple(map(listed.__getitem__, texts)),
        tuple(map(listed.__getitem__, weights)), json_on_hub(config, "config.json"), _plain(next(licences, "")),
        bool(info.gated), index,
    )  # fmt: skip


def list_files(repo: str, commit: str | None) -> list[str]:
    """The names at the top of a repository."""
    return [file.name for file in _listed(repo, retry(lambda: _ask(repo, commit), RetryPolicy(attempts=4)))]


def _ask(repo: str, revision: str | None) -> Any:
    """The model's information with sizes and hashes of its files, in one request of huggingface_hub."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    _LOG.debug("GET %s/api/models/%s revision=%s", client.address(constants.ENDPOINT), repo, revision)
    try:
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        return HfApi(library_name="moecli").model_info(repo, revision=revision, files_metadata=True, timeout=timeout)
    except HfHubHTTPError as error:
        answer = error.response
        raise client.refusal(repo, revision, "", answer.status_code, answer.headers) from error
    except client.transport_failures() as error:
        raise client.unreachable(error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"what the server at {constants.ENDPOINT} says of {repo} is not the language of the Hub"
        raise NetworkError(message, "is HF_ENDPOINT right?") from error


def _listed(repo: str, info: Any) -> list[RemoteFile]:
    """Every file at the top of the repository. A name that git cannot hold proves that the server lies."""
    files = []
    for each in info.siblings or ():
        name, size = each.rfilename, each.size
        parts = name.split("/") if isinstance(name, str) else [".."]
        if not {"", ".", ".."}.isdisjoint(parts) or "\\" in name or not name.isprintable():
            raise CheckpointError(f"{repo} names the file {str(name)[:80]!a}, which is outside its folder")
        sha256 = each.lfs.sha256 if each.lfs else None
        blob = sha256 or each.blob_id
        if len(parts) > 1:
            continue
        if type(size) is not int or not 0 <= size < 2**50 or not BLOB_NAME.fullmatch(str(blob)):
            raise CheckpointError(f"the Hub tells no size or no hash of {name} of {repo}")
        files.append(RemoteFile(name, size, blob))
    return files


def _weights(
    repo: str, names: Collection[str], index: Mapping[str, str] | None, in_single: Callable[[], Collection[str]]
) -> list[str]:
    """The files that hold the model, by the rule that opens a folder."""
    if index is not None:
        shards(repo, index)
    held = {name for name in names if _WEIGHTS.fullmatch(name)}
    chosen = choose(held, index, in_single)
    if not chosen:
        raise no_weights(names, repo)
    if lost := next((name for name in chosen if name not in held), None):
        raise CheckpointError(f"{INDEX} of {repo} names '{lost[:80]}', which it does not hold")
    return chosen


def _plain(text: str) -> str | None:
    """A stranger's word, safe for a terminal."""
    return text[:40] if text and text.isprintable() else None
