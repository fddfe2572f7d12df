"""A model on the Hub, known without its weights: config.json and safetensors headers, read by range request."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from moecli import __version__, settings
from moecli.checkpoint import StoredTensor, header_tensors
from moecli.errors import CheckpointError, ConfigError, NetworkError

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_HUB = "https://huggingface.co"
_LARGEST_CONFIG = 16 * 1024**2
_LARGEST_INDEX = 64 * 1024**2
_LARGEST_HEADER = 100_000_000  # the format's own limit
_MOST_SHARDS = 2000
_FIRST_GUESS = 64 * 1024
_CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class Remote:
    """What a repository says of itself at one commit; `bytes_read` is what it took to learn it."""

    config: dict[str, Any]
    tensors: Mapping[str, StoredTensor]
    commit: str | None
    bytes_read: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """The first bytes of a file."""

    data: bytes
    file_size: int
    commit: str | None


def read_remote(repo: str, revision: str | None = None) -> Remote:
    """Ask the Hub for the facts of a model: a few MB at most, and no weights. NetworkError if it cannot be had."""
    _check_endpoint(settings.read("HF_ENDPOINT") or _HUB)
    config = _Repository(repo, revision).fetch("config.json", _LARGEST_CONFIG)
    if config is None:
        raise NetworkError(f"{repo} holds no config.json", "only models in transformers' format can be inspected")
    pinned = _Repository(repo, config.commit or revision)
    index = pinned.fetch(_INDEX, _LARGEST_INDEX)
    names = Counter({_SINGLE: 0}) if index is None else _shards(repo, _json_object(index.data, _INDEX))
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        headers = list(pool.map(pinned.header, names, names.values()))
    if index is None and headers[0] is None:
        raise NetworkError(f"{repo} holds no safetensors weights", "look for a release in safetensors format")
    tensors: dict[str, StoredTensor] = {}
    for name, header in zip(names, headers, strict=True):
        if header is None:
            raise NetworkError(f"{repo} names the file '{name}' and does not hold it")
        tensors |= header[0]
    read = sum(len(piece.data) for piece in (config, index) if piece) + sum(h[1] for h in headers if h)
    return Remote(_json_object(config.data, "config.json"), tensors, config.commit, read)


class _Repository:
    """The files of one repository at one revision."""

    def __init__(self, repo: str, revision: str | None) -> None:
        self._repo = repo
        self._revision = revision

    def fetch(self, name: str, largest: int) -> _Piece | None:
        """A small file as a whole; None if it is not there."""
        piece = self._read(name, 0, largest + 1, ranged=False)
        if piece is not None and len(piece.data) > largest:
            raise NetworkError(f"{name} of {self._repo} is larger than {largest} bytes, which cannot be right")
        return piece

    def header(self, name: str, guess: int) -> tuple[dict[str, StoredTensor], int] | None:
        """The tensors of a safetensors file and the bytes read for them; None if there is no such file."""
        first = self._read(name, 0, guess or _FIRST_GUESS)
        if first is None:
            return None
        length = int.from_bytes(first.data[:8], "little")
        if len(first.data) < 8 or not 2 <= length <= min(_LARGEST_HEADER, first.file_size - 8):
            raise CheckpointError(f"{name} of {self._repo} is damaged: its header claims {length} bytes")
        data = first.data[8 : 8 + length]
        if len(data) < length:
            rest = self._read(name, len(first.data), length - len(data))
            data += rest.data if rest else b""
        return header_tensors(Path(name), data, first.file_size), max(len(first.data), 8 + len(data))

    def _read(self, name: str, start: int, size: int, ranged: bool = True) -> _Piece | None:
        """At most `size` bytes from `start`, even where a server ignores the range; None if there is no such file."""
        from huggingface_hub import constants, get_session, get_token, hf_hub_url

        url = hf_hub_url(self._repo, name, revision=self._revision)
        token = get_token()
        headers = {"accept-encoding": "identity", "user-agent": f"moecli/{__version__}"}
        headers |= {"range": f"bytes={start}-{start + size - 1}"} if ranged else {}
        headers |= {"authorization": f"Bearer {token}"} if token else {}  # dropped by redirects to another host
        try:
            timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
            with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
                if not self._is_there(name, response.status_code, response.headers):
                    return None
                skipped = start if response.status_code == 200 else 0
                data = _take(response.iter_bytes(), skipped + size)[skipped:]
                return _Piece(data, _file_size(response.headers, len(data)), _commit([*response.history, response]))
        except _transport_failures() as error:
            raise NetworkError(
                f"the Hub at {constants.ENDPOINT} cannot be reached: {str(error) or type(error).__name__}",
                "check the network, or use --offline with an alias or a folder",
            ) from error

    def _is_there(self, name: str, status: int, headers: Mapping[str, str]) -> bool:
        """Whether the answer is the file; False if only the file is missing, NetworkError for everything else."""
        code = headers.get("x-error-code", "")
        if status in (200, 206):
            return True
        if status == 404 and code in ("EntryNotFound", "") and name != "config.json":
            return False
        raise _refusal(self._repo, self._revision, name, status, code)


def _transport_failures() -> tuple[type[Exception], ...]:
    """What the HTTP library under huggingface_hub raises: its name changes, that Hub errors derive from it does not."""
    from huggingface_hub.errors import HfHubHTTPError

    bases = tuple(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))
    return (*bases, UnicodeError)


def _refusal(repo: str, revision: str | None, name: str, status: int, code: str) -> NetworkError:
    """What a Hub answer other than the file means, and what to do."""
    token = (
        "then set HF_TOKEN to a token of that account" if not settings.read("HF_TOKEN") else "HF_TOKEN has no access"
    )
    if code == "GatedRepo" or status == 403:
        return NetworkError(f"{repo} is gated: the Hub wants its terms accepted", f"accept them on its page, {token}")
    if code == "RevisionNotFound":
        return NetworkError(f"{repo} has no revision '{revision}'", "name a branch, tag or commit of it")
    if code == "EntryNotFound":
        return NetworkError(f"{repo} holds no {name}", "only models in transformers' format can be inspected")
    if status in (401, 404):
        hint = "check the spelling; for a private model set HF_TOKEN"
        return NetworkError(f"the Hub knows no model '{repo}', or it is private (HTTP {status})", hint)
    return NetworkError(f"the Hub answers HTTP {status} to {repo}/{name}", "try again later")


def _check_endpoint(endpoint: str) -> None:
    """Before huggingface_hub is imported, which already takes the address apart."""
    try:
        parts = urlsplit(endpoint)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise NetworkError(
            f"HF_ENDPOINT is '{endpoint[:80]}', which is no web address", "unset it or write https://..."
        )


def _take(chunks: Iterable[bytes], size: int) -> bytes:
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) >= size:
            break
    return bytes(data[:size])


def _commit(responses: Iterable[Any]) -> str | None:
    """The commit the Hub resolved the revision to; on a redirect only the first answer says it."""
    named = (response.headers.get("x-repo-commit", "") for response in responses)
    return next((commit for commit in named if commit.isalnum() and commit.isascii() and len(commit) <= 64), None)


def _file_size(headers: Mapping[str, str], received: int) -> int:
    total = headers.get("content-range", "").rpartition("/")[2] or headers.get("content-length", "")
    return int(total) if total.isascii() and total.isdigit() else received


def _shards(repo: str, index: Mapping[str, Any]) -> Counter[str]:
    """The weight files an index names, each with a guess at the length of its header."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{_INDEX} of {repo} is not a readable index")
    lengths: Counter[str] = Counter()
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or "\0" in name:
            raise CheckpointError(f"{_INDEX} of {repo} names a file outside the repository")
        lengths[name] += len(tensor) + 100
    if len(lengths) > _MOST_SHARDS:
        raise CheckpointError(f"{_INDEX} of {repo} names {len(lengths)} files, which cannot be right")
    return Counter({name: length + 1024 for name, length in sorted(lengths.items())})


def _json_object(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} on the Hub is not readable JSON") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{name} on the Hub does not hold a JSON object")
    return value
