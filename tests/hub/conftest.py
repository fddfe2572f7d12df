"""A small Hub with one model, for tests of single steps; larger ones make their own."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from moecli.hub.cache import blob_hash
from moecli.hub.manifest import RemoteFile
from moecli.hub.retry import RetryPolicy
from moecli.model import catalog
from tests.support import hub_server

REPO = "somebody/some-moe"
ONCE = RetryPolicy(attempts=1)
CONFIG = catalog.find("mixtral").config()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    with hub_server.serve_library(monkeypatch, timeout=1) as running:
        running.put(f"{REPO}/config.json", json.dumps(CONFIG).encode())
        running.put(f"{REPO}/model.safetensors", b"weights")
        yield running


def named(name: str, data: bytes, large: bool = False) -> RemoteFile:
    """A file of these bytes, as the Hub lists it: a large one by its SHA-256."""
    found = blob_hash("0" * (64 if large else 40), len(data))
    found.update(data)
    return RemoteFile(name, len(data), found.hexdigest())
