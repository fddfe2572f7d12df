"""A small Hugging Face Hub on 127.0.0.1: files by range, commits, gates, redirects, and a count of what it sent."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from headers import Tensors, header, index, shard_names

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class File:
    """The first bytes of a file; zeros follow up to its size."""

    start: bytes
    size: int


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
    url: str = ""

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
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self.hub.seen.append((self.path, dict(self.headers)))
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        repo, revision, name = match.groups() if match else ("", "", "")
        if self.hub.status:
            self._refuse(self.hub.status, "")
        elif not any(path.startswith(f"{repo}/") for path in self.hub.files):
            self._refuse(401, "RepoNotFound")
        elif self.hub.gated and self.headers.get("authorization") != f"Bearer {self.hub.token}":
            self._refuse(403 if "authorization" in self.headers else 401, "GatedRepo")
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif (file := self.hub.files.get(f"{repo}/{name}")) is None:
            self._refuse(404, "EntryNotFound")
        elif self.hub.redirect and name.endswith(".safetensors"):
            self._answer(302, b"", {"location": self.hub.redirect + self.path})
        else:
            self._file(file)

    def _file(self, file: File) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", "")) if self.hub.ranges else None
        first, last = (int(asked[1]), min(int(asked[2]), file.size - 1)) if asked else (0, file.size - 1)
        part = {"content-range": f"bytes {first}-{last}/{file.size}"} if asked else {}
        self.send_response(206 if asked else 200)
        for key, value in {"x-repo-commit": COMMIT, "content-length": str(last + 1 - first), **part}.items():
            self.send_header(key, value)
        self.end_headers()
        for begin in range(first, last + 1, 1 << 16):
            end = min(begin + (1 << 16), last + 1)
            chunk = file.start[begin:end].ljust(end - begin, b"\0")
            try:
                self.wfile.write(chunk)
            except OSError:  # the reader has enough
                self.close_connection = True
                return
            self.hub.sent += len(chunk)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, b"", {"x-error-code": code} if code else {})

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in {"content-length": str(len(body)), "x-repo-commit": COMMIT, **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""
