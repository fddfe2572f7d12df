"""A repository of weights alone: its configuration comes from the catalog, its tokenizer from another repository."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from moecli.errors import CheckpointError, NetworkError
from moecli.hub.download import fetch_all
from moecli.hub.manifest import read_manifest
from moecli.hub.retry import RetryPolicy
from moecli.hub.supplement import supply
from moecli.model import catalog
from tests.hub.test_download import Seen
from tests.support import hub_server
from tests.support.hub_server import Fault

REPO, TOKENIZER = "xai-org/grok-1", "Xenova/grok-1-tokenizer"
QUICK = RetryPolicy(attempts=2, first_wait=0.01)


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    with hub_server.serve_library(monkeypatch, timeout=0.5) as hub:
        for number in range(3):
            hub.put(f"{REPO}/ckpt-0/tensor{number:05}_000", bytes([number]) * 100)
        hub.put(f"{REPO}/README.md", b"Grok-1")
        for name in ("tokenizer.json", "tokenizer_config.json", "README.md"):
            hub.put(f"{TOKENIZER}/{name}", json.dumps({"of": name}).encode())
        yield hub


def test_what_is_missing_is_supplied(release: hub_server.Hub) -> None:
    manifest = read_manifest(REPO)
    entry = catalog.find("grok-1")
    assert entry is not None and manifest.supplied_by == entry and manifest.config == entry.config()
    assert [file.name for file in manifest.files] == [f"ckpt-0/tensor{number:05}_000" for number in range(3)]
    folder = fetch_all(manifest, Seen(), QUICK)
    assert json.loads((folder / "config.json").read_text()) == entry.config()
    assert json.loads((folder / "tokenizer.json").read_text()) == {"of": "tokenizer.json"}
    assert (folder / "ckpt-0" / "tensor00002_000").read_bytes() == bytes([2]) * 100
    assert not (folder / "README.md").exists()
    before, times = len(release.seen), (folder / "config.json").stat().st_mtime_ns
    supply(manifest, folder, QUICK)
    assert len(release.seen) == before and (folder / "config.json").stat().st_mtime_ns == times


def test_a_tokenizer_that_is_not_the_listed_one(release: hub_server.Hub, tmp_path: Path) -> None:
    release.faults["tokenizer.json"] = [Fault(wrong=True)]
    with pytest.raises(CheckpointError, match=r"tokenizer\.json of Xenova/grok-1-tokenizer is not the file"):
        supply(read_manifest(REPO), tmp_path, QUICK)
    assert not list(tmp_path.iterdir())


def test_another_release_needs_a_configuration(release: hub_server.Hub) -> None:
    """The catalog speaks for the repository that it knows, and of no other."""
    release.put("somebody/grok/ckpt-0/tensor00000_000", b"x")
    with pytest.raises(NetworkError, match=r"holds no config\.json"):
        read_manifest("somebody/grok")
