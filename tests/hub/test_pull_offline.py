"""A pull of what is whole: nobody needs to be asked, and nothing is written."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import moecli as package
from moecli.errors import NetworkError
from moecli.hub import cache as hub_cache
from moecli.hub.download import fetch_all
from moecli.hub.headers import read_remote
from moecli.hub.manifest import read_manifest
from moecli.library.pull import propose
from moecli.library.resolve import resolve
from tests.hub.test_download import Seen
from tests.support import hub_server
from tests.support.hub_server import Fault

REPO = "somebody/some-moe"
TINY = Path(package.__file__).parent / "tiny"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    """Its one model is in the cache."""
    with hub_server.serve_library(monkeypatch, timeout=0.5) as running:
        for file in TINY.iterdir():
            running.put(f"{REPO}/{file.name}", file.read_bytes())
        fetch_all(read_manifest(REPO), Seen())
        running.seen.clear()
        yield running


def again(name: str = REPO) -> tuple[Path, str | None]:
    proposal = propose(resolve(name, original=True))
    assert proposal.missing == 0
    return fetch_all(proposal.manifest, Seen()), proposal.unasked


@pytest.mark.parametrize(
    "name", [REPO, f"{REPO}@main", f"{REPO}@{hub_server.COMMIT}", f"https://hf.co/{REPO}/tree/main"]
)
@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch, name: str, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    folder, why = again(name)
    assert folder == hub_cache.snapshot(REPO) and why == "the network is not to be used" and not hub.seen


def test_offline_without_it_is_an_error(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (hub_cache.snapshot(REPO) / "model.safetensors").unlink()
    with pytest.raises(NetworkError, match=f"'{REPO}' is on the Hub, and the network is not to be used"):
        again()
    assert not hub.seen


def test_offline_nothing_is_asked_of_the_hub(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for ask in (lambda: read_remote(REPO), lambda: read_manifest(REPO)):
        with pytest.raises(NetworkError, match="the network is not to be used"):
            ask()
    assert not hub.seen


def test_no_network(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    folder, why = again()
    assert folder == hub_cache.snapshot(REPO) and "http://127.0.0.1:9 cannot be reached" in why


def test_a_busy_hub_does_not_stop_what_is_whole(hub: hub_server.Hub) -> None:
    hub.faults[""] = [Fault(status=503)]
    assert "HTTP 503" in again()[1]
    assert again()[1] is None


def test_the_manifest_of_the_cache_is_that_of_the_hub(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = read_manifest(REPO)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    known = propose(resolve(REPO, original=True)).manifest
    assert (known.commit, known.files, known.config) == (asked.commit, asked.files, asked.config)


def test_a_read_only_cache_that_is_whole(hub: hub_server.Hub) -> None:
    """Nothing is even tried: root may write where others may not."""
    with unwritable(hub_cache.settings.hub_cache()):
        before = stamps()
        assert again()[1] is None
        assert stamps() == before


def stamps() -> dict[str, int]:
    """When each folder of the cache last got or lost an entry."""
    root = hub_cache.settings.hub_cache()
    return {folder: os.stat(folder).st_mtime_ns for folder, _, _ in os.walk(root)}  # noqa: PTH116


@contextlib.contextmanager
def unwritable(root: Path) -> Iterator[None]:
    folders = [Path(folder) for folder, _, _ in os.walk(root)]
    for folder in folders:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        yield
    finally:
        for folder in folders:
            folder.chmod(stat.S_IRWXU)


def test_the_listing_decides_online(hub: hub_server.Hub) -> None:
    hub.put(f"{REPO}/chat_template.jinja", b"new")
    manifest = propose(resolve(REPO, original=True)).manifest
    assert (fetch_all(manifest, Seen()) / "chat_template.jinja").read_bytes() == b"new"
    assert json.loads((manifest.snapshot / "config.json").read_text())
