"""A small Hugging Face Hub on 127.0.0.1: files by range, commits, gates, redirects, and a count of what it sent."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from tests.support.headers import Tensors, header, index, shard_names

Send = Callable[[bytes], None]  # to the socket, status line and all

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class File:
    """The first bytes of a file and its last ones; zeros lie between them."""

    start: bytes
    size: int
    end: bytes = b""

    def part(self, first: int, end: int) -> bytes:
        found = self.start[first:end].ljust(end - first, b"\0")
        last = self.size - len(self.end)
        if not self.end or end <= last:
            return found
        return found[: max(0, last - first)] + self.end[max(0, first - last) : end - last]


@dataclass(frozen=True)
class Fault:
    """How one answer goes wrong: a status, a body cut or silent after so many bytes, other bytes, a slow pace."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None  # bytes of this answer, then the connection closes
    stall: float = 0  # seconds of silence before it closes
    wrong: bool = False
    longer: int = 0  # bytes more than the file has, in an answer that does not tell its length
    pace: tuple[int, float] = (1 << 16, 0)  # bytes, and seconds after them
    gate: threading.Event | None = None  # after the first of them, nothing until it is set


@dataclass
class Hub:
    """What the server holds, how it misbehaves, and what it saw."""

    files: dict[str, File] = field(default_factory=dict)  # by "org/name/path"
    gated: bool = False  # a token opens it
    token: str = "hf_secret"
    status: int = 0  # answered to everything, if not 0
    ranges: bool = True
    redirect: str = ""  # send weights to this other host
    seen: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    sent: int = 0
    sent_of: Counter[str] = field(default_factory=Counter)  # bytes, by file name
    faults: dict[str, list[Fault]] = field(default_factory=dict)  # by file name, "" for the listing; one an answer
    raw: dict[str, Callable[[Send], object]] = field(
        default_factory=dict
    )  # whole answers, by file name, "" the listing
    listed: list[dict[str, object]] = field(default_factory=list)  # lies added to the listing
    sizes: dict[str, int] = field(default_factory=dict)  # lies about sizes, by file name
    commit: str = COMMIT
    url: str = ""
    closed: bool = False

    def requests(self, name: str) -> list[Mapping[str, str]]:
        """The headers of every request for a file."""
        return [headers for path, headers in self.seen if path.endswith(f"/{name}")]

    def add(self, repo: str, config: object, *shards: Tensors) -> None:
        """A model with these shards."""
        self.put(f"{repo}/config.json", json.dumps(config).encode())
        if len(shards) > 1:
            self.put(f"{repo}/model.safetensors.index.json", json.dumps(index(shards)).encode())
        for name, tensors in zip(shard_names(len(shards)), shards, strict=True):
            self.files[f"{repo}/{name}"] = File(*header(tensors))

    def put(self, path: str, data: bytes) -> None:
        self.files[path] = File(data, len(data))


@contextmanager
def serve() -> Iterator[Hub]:
    """The server runs while the block does; HF_ENDPOINT is `hub.url`."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closed = True
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serve_library(monkeypatch: pytest.MonkeyPatch, timeout: float = 5) -> Iterator[Hub]:
    """The same, asked by the huggingface_hub of this process."""
    with serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", timeout)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
        yield hub
        for thread in threading.enumerate():  # what a failure left under way would ask the next test's server again
            if thread.name.endswith("(work)"):
                thread.join(2)


@cache
def digest(path: str, file: File) -> str:
    """What the Hub names a file by; of one too large to be read, something that looks like it."""
    if file.size > 1 << 26 or file.end:
        return hashlib.sha256(path.encode()).hexdigest()
    data = file.part(0, file.size)
    if path.endswith(".safetensors"):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self.hub.seen.append((self.path, dict(self.headers)))
        path = unquote(urlsplit(self.path).path)
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        repo, revision, name = match.groups() if match else ("", "", "")
        if listing:
            repo, revision, name = listing[1], listing[3] or "main", ""
        faults = self.hub.faults.get(name)
        fault = faults.pop(0) if faults and self.command == "GET" else Fault()
        if (raw := self.hub.raw.get(name)) is not None and (match or listing):
            self._raw(raw)
        elif self.hub.status or fault.status:
            self._answer(self.hub.status or fault.status, b"", fault.headers)
        elif not any(path.startswith(f"{repo}/") for path in self.hub.files):
            self._refuse(401, "RepoNotFound")
        elif match and self.hub.gated and self.headers.get("authorization") != f"Bearer {self.hub.token}":
            self._refuse(403 if "authorization" in self.headers else 401, "GatedRepo")
        elif revision not in ("main", self.hub.commit):
            self._refuse(404, "RevisionNotFound")
        elif listing:
            self._answer(200, json.dumps(self._tree(repo) if listing[2] == "tree" else self._info(repo)).encode(), {})
        elif (file := self.hub.files.get(f"{repo}/{name}")) is None:
            self._refuse(404, "EntryNotFound")
        elif self.hub.redirect and name.endswith(".safetensors"):
            about = {"x-linked-etag": f'"{digest(f"{repo}/{name}", file)}"', "x-linked-size": str(file.size)}
            self._answer(302, b"", {"location": self.hub.redirect + self.path, **about})
        else:
            self._file(f"{repo}/{name}", file, fault)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _info(self, repo: str) -> dict[str, object]:
        siblings = [
            {"rfilename": path, "size": size, "blobId": blob} | ({"lfs": _lfs(blob, size)} if len(blob) == 64 else {})
            for path, size, blob in self._held(repo)
        ]
        tags = ["transformers", "license:apache-2.0"]
        about = {"id": repo, "sha": self.hub.commit, "gated": "auto" if self.hub.gated else False, "tags": tags}
        return about | {"siblings": siblings + self.hub.listed}

    def _tree(self, repo: str) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": path, "size": size, "oid": blob}
            | ({"lfs": {"oid": blob, "size": size, "pointerSize": 130}} if len(blob) == 64 else {})
            for path, size, blob in self._held(repo)
        ]

    def _held(self, repo: str) -> Iterator[tuple[str, int, str]]:
        for path, file in self.hub.files.items():
            if path.startswith(f"{repo}/"):
                name = path.removeprefix(f"{repo}/")
                yield name, self.hub.sizes.get(name, file.size), digest(path, file)

    def _file(self, path: str, file: File, fault: Fault) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", "")) if self.hub.ranges else None
        first, last = (int(asked[1]), min(int(asked[2] or file.size), file.size - 1)) if asked else (0, file.size - 1)
        if asked and first >= file.size:
            self._answer(416, b"", {"content-range": f"bytes */{file.size}"})
            return
        part = {"content-range": f"bytes {first}-{last}/{file.size}"} if asked else {}
        part |= {} if fault.longer else {"content-length": str(last + 1 - first)}
        self.send_response(200 if fault.longer or not asked else 206)
        about = {"x-repo-commit": self.hub.commit, "etag": f'"{digest(path, file)}"'}
        for key, value in {**about, **({} if fault.longer else part)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self._body(path.rpartition("/")[2], file, first, last + 1 + fault.longer, fault)
        self.close_connection = self.close_connection or fault.cut is not None

    def _body(self, name: str, file: File, first: int, end: int, fault: Fault) -> None:
        end = end if fault.cut is None else min(end, first + fault.cut)
        step, seconds = fault.pace
        for begin in range(first, end, step):
            chunk = file.part(begin, min(begin + step, end))
            self._count(name, len(chunk))  # before the reader has it, who may ask at once
            try:
                self.wfile.write(b"\1" * len(chunk) if fault.wrong else chunk)
            except OSError:  # the reader has enough
                self._count(name, -len(chunk))
                self.close_connection = True
                return
            time.sleep(seconds)
            if fault.gate is not None:
                fault.gate.wait(120)
        time.sleep(fault.stall)

    def _count(self, name: str, size: int) -> None:
        self.hub.sent += size
        self.hub.sent_of[name] += size

    def _raw(self, answer: Callable[[Send], object]) -> None:
        """Until the reader has enough."""

        def send(data: bytes) -> None:
            if self.hub.closed:
                raise ConnectionAbortedError
            self.wfile.write(data)
            self.hub.sent += len(data)

        self.close_connection = True
        with contextlib.suppress(OSError):
            answer(send)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, b"", {"x-error-code": code} if code else {})

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in {"content-length": str(len(body)), "x-repo-commit": self.hub.commit, **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def _lfs(sha256: str, size: int) -> dict[str, object]:
    return {"sha256": sha256, "size": size, "pointerSize": 130}
