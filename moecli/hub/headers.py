"""A model on the Hub, known without its weights: config.json and the headers of its files, read by range request."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecli.checkpoint import gguf, gguf_names, grok_release, state_dict
from moecli.checkpoint.files import RELEASE, SAFETENSORS, TORCH, choose, container, cut_apart, no_weights, weight_map
from moecli.checkpoint.folder import merged
from moecli.checkpoint.safetensors import header_tensors
from moecli.checkpoint.stored import Source, StoredTensor
from moecli.errors import CheckpointError, ConfigError, NetworkError, json_object, printable
from moecli.hub import bounds, client
from moecli.hub.background import each_in_background

_FIRST_GUESS = 64 * 1024
_NEXT_GUESS = 1024 * 1024
_CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class Remote:
    """What a repository says of itself at one commit; `bytes_read` is what it took to learn it.

    `unread` says why nothing is known of its tensors, where its weights are none that can be read.
    """

    config: dict[str, Any]
    tensors: Mapping[str, StoredTensor]
    commit: str | None
    bytes_read: int
    unread: str | None = None


@dataclass(frozen=True, slots=True)
class _Piece:
    """The first bytes of a file."""

    data: bytes
    file_size: int
    commit: str | None


def read_remote(
    repo: str, revision: str | None = None, listed: Callable[[str | None], Iterable[str]] = lambda commit: ()
) -> Remote:
    """Ask the Hub for the facts of a model: a few MB at most, and no weights. NetworkError if it cannot be had.

    `listed` names the files of a commit; it is asked where neither an index nor the usual single file is there.
    """
    config = Repository(repo, revision).fetch("config.json", bounds.LARGEST_CONFIG)
    if config is None:
        raise no_config(repo, listed(revision))
    facts = json_on_hub(config.data, "config.json")
    pinned = Repository(repo, config.commit or revision)
    index, single = pinned.fetch(SAFETENSORS.index, bounds.LARGEST_INDEX), SAFETENSORS.single
    files = None if index is None else read_index(repo, index.data)
    here = pinned.headers(shards(repo, files)) if files else {}
    if not files or here.keys() != set(files.values()):
        here |= pinned.headers({single: 0})
    if not here and not files:  # another container, or shards without an index: only a listing tells
        names = list(listed(config.commit))
        kind = container(names)
        if kind is TORCH and (index := pinned.fetch(kind.index, bounds.LARGEST_INDEX)):
            files = read_index(repo, index.data)
        chosen = choose(names, files, tuple)
        if not chosen:
            return Remote(facts, {}, config.commit, len(config.data), no_weights(names, repo).message)
        if files is None and (cut := cut_apart(chosen)):
            return Remote(facts, {}, config.commit, len(config.data), cut.message)
        try:
            here = pinned.headers(dict.fromkeys(chosen, 0))
        except CheckpointError as error:
            if kind is SAFETENSORS:
                raise
            return Remote(facts, {}, config.commit, len(config.data), error.message)
    chosen = choose(here, files, lambda: here[single][0])
    if lost := next((name for name in chosen if name not in here), None):
        raise NetworkError(f"{repo} names the file '{lost}' and does not hold it")
    tensors = merged((here[name][0] for name in chosen), files or {})
    read = sum(len(piece.data) for piece in (config, index) if piece) + sum(header[1] for header in here.values())
    return Remote(facts, tensors, config.commit, read)


def no_config(repo: str, names: Iterable[str]) -> NetworkError:
    """Why a repository is no model by itself; of one of GGUF files, how one is named."""
    if held := gguf_names.variants(names):
        label = printable(held[0].label, 40)
        return NetworkError(
            f"{repo} holds its weights as GGUF: a file of it is to be named",
            f"{repo}:{label} is one, moecli memory {repo} --files lists them",
        )
    return NetworkError(f"{repo} holds no config.json", "only models in transformers' format can be read")


class Repository:
    """The files of one repository at one revision."""

    def __init__(self, repo: str, revision: str | None) -> None:
        self._repo = repo
        self._revision = revision
        self._headers_left = bounds.LARGEST_HEADERS
        self._lock = threading.Lock()

    def fetch(self, name: str, largest: int) -> _Piece | None:
        """A small file as a whole; None if it is not there."""
        piece = self._read(name, 0, largest + 1, ranged=False)
        if piece is not None and len(piece.data) > largest:
            raise NetworkError(f"{name} of {self._repo} is larger than {largest} bytes, which cannot be right")
        return piece

    def headers(self, guesses: Mapping[str, int]) -> dict[str, tuple[dict[str, StoredTensor], int]]:
        """What `header` gives for several files at once; those that are not there are left out."""
        found = each_in_background(lambda name: self.header(name, guesses[name]), guesses, _CONNECTIONS)
        return {name: header for name, header in zip(guesses, found, strict=True) if header is not None}

    def header(self, name: str, guess: int) -> tuple[dict[str, StoredTensor], int] | None:
        """The tensors of a file of weights and the bytes read for them; None if there is no such file."""
        if RELEASE.holds(name):  # hundreds of files: little is asked of each
            guess = grok_release.CHUNK
        first = self._read(name, 0, guess or _FIRST_GUESS)
        if first is None:
            return None
        if RELEASE.holds(name):
            return self._pickled_header(name, first, grok_release.remote_header, 0)
        if name.endswith(gguf_names.ENDING):
            head, read = self._gguf_head(name, first)
            return head[1], read
        if TORCH.holds(name):
            return self._pickled_header(name, first, state_dict.remote_header, _NEXT_GUESS)
        length = int.from_bytes(first.data[:8], "little")
        with self._lock:
            if len(first.data) < 8 or not 2 <= length <= min(self._headers_left, first.file_size - 8):
                raise CheckpointError(f"{name} of {self._repo} is damaged: its header claims {length} bytes")
            self._headers_left -= length
        data = first.data[8 : 8 + length]
        if len(data) < length:
            rest = self._read(name, len(first.data), length - len(data))
            data += rest.data if rest else b""
        bounds.check_values(data, f"the header of {name} of {self._repo}")
        return header_tensors(Path(name), data, first.file_size), max(len(first.data), 8 + len(data))

    def gguf_head(self, name: str) -> tuple[gguf.Header, int] | None:
        """What a GGUF file says and its tensors, and the bytes read for them; None if there is no such file."""
        first = self._read(name, 0, _FIRST_GUESS)
        return None if first is None else self._gguf_head(name, first)

    def _gguf_head(self, name: str, first: _Piece) -> tuple[gguf.Header, int]:
        """Nobody knows how long it is before it was read: each request is for as much again, so that little is vain."""
        data, place = bytearray(first.data), 0

        def take(count: int) -> bytes:
            nonlocal place
            while place + count > len(data) < first.file_size:
                wanted = max(place + count - len(data), min(len(data), _NEXT_GUESS))
                wanted = min(wanted, first.file_size - len(data))
                with self._lock:
                    self._headers_left -= wanted
                    if self._headers_left < 0:
                        raise CheckpointError(f"{name} of {self._repo} describes its tensors at too great a length")
                piece = self._read(name, len(data), wanted)
                if piece is None or not piece.data:
                    break
                data.extend(piece.data)
            place += count
            return bytes(data[place - count : place])

        return gguf.read_header(take, Path(name), first.file_size), len(data)

    def _pickled_header(
        self, name: str, first: _Piece, read: Callable[[Source, str, int], dict[str, StoredTensor]], guess: int
    ) -> tuple[dict[str, StoredTensor], int]:
        """What `read` makes of the parts that it asks for, each fetched once; of `guess` bytes at least."""
        size, pieces = first.file_size, {0: first.data}

        def source(offset: int, count: int) -> bytes:
            end = min(offset + count, size)
            for start, data in pieces.items():
                if start <= offset and end <= start + len(data):
                    return data[offset - start : end - start]
            wanted = min(max(end - offset, guess), size - offset)
            with self._lock:
                self._headers_left -= wanted
                if self._headers_left < 0:
                    raise CheckpointError(f"{name} of {self._repo} describes its tensors at too great a length")
            piece = self._read(name, offset, wanted)
            pieces[offset] = piece.data if piece else b""
            return pieces[offset][: end - offset]

        return read(source, name, size), sum(map(len, pieces.values()))

    def _read(self, name: str, start: int, size: int, ranged: bool = True) -> _Piece | None:
        """At most `size` bytes from `start`, even where a server ignores the range; None if there is no such file."""
        range_ = (start, start + size - 1) if ranged else None
        with client.get(self._repo, self._revision, name, range_) as answer:
            code = answer.headers.get("x-error-code", "")
            if answer.status == 404 and (code == "EntryNotFound" or (not code and name != "config.json")):
                return None
            if answer.status not in (200, 206):
                raise client.refusal(answer, self._repo, self._revision, name)
            skipped = start if answer.status == 200 else 0
            if skipped > bounds.LARGEST_HEADERS:
                raise NetworkError(f"the server sends no part of {name}, only all of it", "is HF_ENDPOINT right?")
            data = answer.read(skipped + size)[skipped:]
            return _Piece(data, answer.file_size or len(data), answer.commit)


def read_index(repo: str, content: bytes) -> dict[str, str]:
    """The file of each tensor, as the index of a repository says. CheckpointError or NetworkError if it is unfit."""
    bounds.check_values(content, f"the index of {repo}")
    return weight_map(content, f"the index of {repo}")


def shards(repo: str, files: Mapping[str, str]) -> Counter[str]:
    """The weight files an index names, each with a guess at the length of its header."""
    lengths: Counter[str] = Counter()
    for tensor, name in files.items():
        lengths[name] += len(tensor) + 100
    if len(lengths) > bounds.MOST_SHARDS:
        raise CheckpointError(f"the index of {repo} names {len(lengths)} files, which cannot be right")
    return Counter({name: length + 1024 for name, length in sorted(lengths.items())})


def json_on_hub(data: bytes, name: str) -> dict[str, Any]:
    """The JSON object in a file that was fetched. ConfigError if there is none."""
    bounds.check_values(data, f"{name} on the Hub")
    return json_object(data, lambda problem: ConfigError(f"{name} on the Hub {problem}"))
