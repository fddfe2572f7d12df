"""What is fetched of a repository: which files, in which order, of which size and hash; what is there of it already."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moecli.errors import CheckpointError
from moecli.hub import bounds, download
from moecli.hub import manifest as manifests
from moecli.hub.manifest import DownloadManifest, RemoteFile, cached_manifest, list_files, read_manifest, read_texts
from moecli.hub.retry import RetryPolicy
from tests.hub.conftest import CONFIG, ONCE, REPO, named
from tests.hub.test_download import Seen
from tests.support import hub_server
from tests.support.hub_server import COMMIT

TEXTS = (
    "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def test_small_files_come_first_in_one_order_then_weights_by_name(hub: hub_server.Hub) -> None:
    del hub.files[f"{REPO}/model.safetensors"]
    index = {"weight_map": {"x": "b.safetensors", "y": "a.safetensors"}}
    others = (
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
        "x.tiktoken",
        "tekken.json",
        "README.md",
        "pytorch_model.bin",
    )
    for name in (*reversed(TEXTS), *others, "b.safetensors", "a.safetensors", "c.safetensors"):
        data = json.dumps(CONFIG if name == "config.json" else index).encode()
        hub.put(f"{REPO}/{name}", data)
    found = read_manifest(REPO, None, ONCE)
    kept = [*TEXTS[1:], "vocab.json", "merges.txt", "tokenizer.model", "x.tiktoken", "tekken.json"]
    assert [file.name for file in found.texts] == ["config.json", *sorted(kept)]
    assert [file.name for file in found.weights] == ["a.safetensors", "b.safetensors"]
    assert found.files == found.texts + found.weights and found.bytes == sum(file.size for file in found.files)
    data = json.dumps(index).encode()
    assert found.weights[0] == named("a.safetensors", data, large=True) and found.texts[1] == named(
        "added_tokens.json", data
    )
    assert (found.repo, found.revision, found.commit) == (REPO, "main", COMMIT)
    assert (found.config, found.index, found.supplied_by) == (CONFIG, index["weight_map"], None)
    assert (found.licence, found.gated) == ("apache-2.0", False)
    assert (
        found.snapshot == found.root / "snapshots" / COMMIT
        and found.blob(found.texts[0]) == found.root / "blobs" / found.texts[0].hash
    )
    del hub.files[f"{REPO}/tokenizer.json"]
    found = read_manifest(REPO, COMMIT, ONCE)
    assert [file.name for file in found.texts if file.name not in TEXTS] == [
        "merges.txt",
        "tekken.json",
        "tokenizer.model",
        "vocab.json",
        "x.tiktoken",
    ]
    assert found.revision == COMMIT


def test_what_is_asked_for_it(hub: hub_server.Hub) -> None:
    """The listing, and the configuration; what of it is in the cache is not asked for again."""
    found = read_manifest(REPO, None, ONCE)
    assert [path for path, _ in hub.seen] == [f"/api/models/{REPO}?blobs=true", f"/{REPO}/resolve/{COMMIT}/config.json"]
    blob = found.blob(found.texts[0])
    blob.parent.mkdir(parents=True)
    blob.write_bytes(json.dumps(CONFIG).encode())
    hub.seen.clear()
    assert read_manifest(REPO, None, ONCE) == found and len(hub.seen) == 1
    blob.write_bytes(b"{}")
    assert read_manifest(REPO, None, ONCE) == found and len(hub.seen) == 3


@pytest.mark.parametrize("gated", [True, False])
def test_a_gate_and_a_licence_are_told(gated: bool, hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated = gated
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert read_manifest(REPO, None, ONCE).gated == gated
    for tags, licence in (
        (["license:mit", "license:other"], "mit"), (["x", 7], None), (None, None), (["license:"], None),
        (["license:\x1b"], None), (["license:" + "x" * 50], "x" * 40),
    ):  # fmt: skip
        listing = {
            "sha": COMMIT,
            "tags": tags,
            "siblings": [
                {"rfilename": f.name, "size": f.size, "blobId": f.hash} for f in read_manifest(REPO, None, ONCE).files
            ],
        }
        text = json.dumps(listing).encode()
        hub.raw[""] = lambda send, text=text: send(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(text) + text
        )
        assert read_manifest(REPO, None, ONCE).licence == licence
        del hub.raw[""]


@pytest.mark.parametrize("size", [bounds.LARGEST_TEXT, bounds.LARGEST_TEXT + 1])
def test_a_small_file_is_small(size: int, hub: hub_server.Hub) -> None:
    hub.listed = [{"rfilename": "tokenizer.json", "size": size, "blobId": "a" * 40}]
    if size == bounds.LARGEST_TEXT:
        assert read_manifest(REPO, None, ONCE).texts[1].size == size
    else:
        with pytest.raises(CheckpointError, match=f"tokenizer.json of {REPO} has {size} bytes, which cannot be right"):
            read_manifest(REPO, None, ONCE)


def test_names_at_the_top_and_commits(hub: hub_server.Hub) -> None:
    hub.put(f"{REPO}/in/side.json", b"{}")
    hub.put(f"{REPO}/ckpt-0/tensor00000_000", b"x")
    assert sorted(list_files(REPO, None)) == ["ckpt-0/tensor00000_000", "config.json", "model.safetensors"]
    commit, listed = read_texts(REPO, ONCE)
    assert commit == COMMIT and listed["config.json"] == named("config.json", json.dumps(CONFIG).encode())


@pytest.mark.parametrize("large", [True, False])
def test_a_file_knows_its_bytes(large: bool) -> None:
    file = named("x", b"some bytes", large)
    assert file.is_of(b"some bytes")
    assert not file.is_of(b"some bytez") and not file.is_of(b"some byte") and not file.is_of(b"some bytes.")


def test_a_manifest_of_what_is_in_the_cache(hub: hub_server.Hub) -> None:
    asked = read_manifest(REPO, None, ONCE)
    download.fetch_all(asked, Seen(), ONCE)
    found = cached_manifest(REPO, asked.snapshot)
    assert found == DownloadManifest(REPO, COMMIT, COMMIT, asked.texts, asked.weights, CONFIG, None, False)
    pointer = asked.snapshot / "model.safetensors"
    data = pointer.read_bytes()
    pointer.unlink()
    pointer.write_bytes(data)
    assert cached_manifest(REPO, asked.snapshot).weights == (RemoteFile("model.safetensors", len(data), ""),)
    (asked.snapshot / "config.json").unlink()
    with pytest.raises(CheckpointError, match=f"{asked.snapshot} cannot be read: No such file or directory"):
        cached_manifest(REPO, asked.snapshot)


def test_the_patterns_of_names() -> None:
    assert manifests._PLAIN_NAME.fullmatch("model-00001-of-2.safetensors+x_y") and not manifests._PLAIN_NAME.fullmatch(
        ".x"
    )
    assert not manifests._PLAIN_NAME.fullmatch("-x") and not manifests._PLAIN_NAME.fullmatch("a b")


def test_small_questions_are_asked_four_times(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights eight times, and more while they make progress."""
    policies: list[RetryPolicy] = []
    retried = manifests.retry

    def noted(action: Any, policy: RetryPolicy, *rest: Any, **more: Any) -> Any:
        policies.append(policy)
        return retried(action, policy, *rest, **more)

    for room in (manifests, download):
        monkeypatch.setattr(room, "retry", noted)
    found = read_manifest(REPO)
    assert policies == [RetryPolicy(attempts=4)] * 2  # the listing and the configuration
    list_files(REPO, None)
    assert policies[2:] == [RetryPolicy(attempts=4)]
    with pytest.raises(CheckpointError):
        list(download.headers(found, None))  # no weights of a format
    assert policies[3:] == [RetryPolicy(attempts=4)]
    assert RetryPolicy() == RetryPolicy(8, 0.5, 30, 600)


def test_an_index_that_names_too_many_files_is_refused_before_they_are_looked_for(hub: hub_server.Hub) -> None:
    index = {str(number): f"{number}.safetensors" for number in range(bounds.MOST_SHARDS + 1)}
    hub.put(f"{REPO}/model.safetensors.index.json", json.dumps({"weight_map": index}).encode())
    with pytest.raises(CheckpointError, match=f"the index of {REPO} names {len(index)} files, which cannot be right"):
        read_manifest(REPO, None, ONCE)


def test_only_files_of_plain_names_are_weights(hub: hub_server.Hub) -> None:
    del hub.files[f"{REPO}/model.safetensors"]
    for name in (".hidden.safetensors", "-x.safetensors", "a b.safetensors", "good.safetensors"):
        hub.put(f"{REPO}/{name}", b"x")
    assert [file.name for file in read_manifest(REPO, None, ONCE).weights] == ["good.safetensors"]


def test_an_index_that_is_not_needed_is_not_kept(hub: hub_server.Hub) -> None:
    index = {"weight_map": {"x": "gone.safetensors"}}
    hub.put(f"{REPO}/model.safetensors.index.json", json.dumps(index).encode())
    found = read_manifest(REPO, None, ONCE)
    assert found.index is None and [file.name for file in found.files] == ["config.json", "model.safetensors"]
