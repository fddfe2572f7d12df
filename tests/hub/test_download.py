"""Fetching from a Hub that misbehaves: the real huggingface_hub session against a small server on this machine."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import snapshot_download, try_to_load_from_cache

from moecli.errors import CheckpointError, DiskError, MoecliError, NetworkError
from moecli.hub import cache as hub_cache
from moecli.hub.download import _link, each, fetch_all, write_ref
from moecli.hub.manifest import DownloadManifest, RemoteFile, read_manifest
from moecli.hub.retry import RetryPolicy
from moecli.library.pull import lacks_tokenizer
from moecli.model import catalog
from moecli.text.files import tokenizer_among
from tests.support import headers, hub_server
from tests.support.hub_server import Fault

REPO = "somebody/some-moe"
FIRST, SECOND = headers.shard_names(2)
QUICK = RetryPolicy(attempts=4, first_wait=0.01)


class Seen:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.arrived: dict[str, int] = {}
        self.earlier: dict[str, int] = {}
        self.waits: list[tuple[str, float]] = []

    def advance(self, file: RemoteFile, size: int) -> None:
        self.arrived[file.name] = self.arrived.get(file.name, 0) + size

    def found(self, file: RemoteFile, size: int) -> None:
        self.earlier[file.name] = self.earlier.get(file.name, 0) + size

    def wait(self, file: RemoteFile, why: str, seconds: float | None) -> None:
        self.waits.append((why, seconds or 0))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    """A Hub with a model of two shards of 300 KB and what else lies in such a repository."""
    with hub_server.serve_library(monkeypatch, timeout=0.5) as running:
        running.put(f"{REPO}/config.json", json.dumps(catalog.find("mixtral").config()).encode())
        for seed, name in enumerate((FIRST, SECOND)):
            running.put(f"{REPO}/{name}", weights(seed))
        index = {"metadata": {}, "weight_map": {"a": FIRST, "b": SECOND}}
        running.put(f"{REPO}/model.safetensors.index.json", json.dumps(index).encode())
        running.put(f"{REPO}/tokenizer.json", b'{"a": 1}')
        running.put(f"{REPO}/tokenizer_config.json", b"{}")
        for other in (
            "pytorch_model.bin",
            "README.md",
            "consolidated.safetensors",
            "tokenization_own.py",
            "model.py",
            "x/y.json",
        ):
            running.put(f"{REPO}/{other}", b"not wanted")
        yield running


def weights(seed: int, size: int = 300_000) -> bytes:
    import random

    return random.Random(seed).randbytes(size)


def pull(revision: str | None = None, watcher: Seen | None = None) -> Path:
    return fetch_all(read_manifest(REPO, revision, QUICK), watcher or Seen(), QUICK)


def partials() -> list[Path]:
    return sorted(hub_cache.repository(REPO).glob("blobs/*.incomplete"))


# The result


def test_only_what_is_needed_is_fetched_once(hub: hub_server.Hub) -> None:
    watcher = Seen()
    folder = pull(watcher=watcher)
    wanted = {"config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", FIRST, SECOND}
    assert {file.name for file in folder.iterdir()} == wanted
    assert (folder / FIRST).read_bytes() == weights(0) and (folder / SECOND).read_bytes() == weights(1)
    assert watcher.arrived[FIRST] == hub.sent_of[FIRST] == 300_000 and not watcher.earlier
    assert not partials() and hub_cache.snapshot(REPO) == folder
    before = len(hub.seen)
    assert pull() == folder
    assert len(hub.seen) == before + 1  # the listing: what it names is here


def test_the_library_finds_all_of_it_and_fetches_nothing(hub: hub_server.Hub) -> None:
    folder = pull()
    cache = folder.parents[2]
    assert snapshot_download(REPO, cache_dir=cache, local_files_only=True) == str(folder)
    assert try_to_load_from_cache(REPO, FIRST, cache_dir=cache) == str(folder / FIRST)
    (repo,) = huggingface_hub.scan_cache_dir(cache).repos
    assert repo.repo_id == REPO and {ref for each in repo.revisions for ref in each.refs} == {"main"}
    sent = hub.sent_of.copy()
    wanted = [file.name for file in folder.iterdir()]
    theirs = snapshot_download(REPO, cache_dir=cache, endpoint=hub.url, allow_patterns=wanted)
    assert theirs == str(folder)
    assert {name: hub.sent_of[name] for name in wanted} == {name: sent[name] for name in wanted}
    assert repo.size_on_disk == sum(file.stat().st_size for file in (repo.repo_path / "blobs").iterdir())


def test_what_the_library_fetched_is_not_fetched_again(hub: hub_server.Hub) -> None:
    cache = hub_cache.settings.hub_cache()
    theirs = snapshot_download(REPO, cache_dir=cache, endpoint=hub.url, allow_patterns=["config.json", FIRST])
    before = hub.sent_of.copy()
    watcher = Seen()
    assert str(pull(watcher=watcher)) == theirs
    assert hub.sent_of[FIRST] == before[FIRST] and hub.sent_of["config.json"] == before["config.json"]
    assert watcher.earlier[FIRST] == 300_000 and watcher.arrived[SECOND] == 300_000


def test_a_branch_gets_a_ref_only_when_it_is_whole(hub: hub_server.Hub) -> None:
    old = pull()
    hub.commit = "f" * 40
    hub.put(f"{REPO}/{SECOND}", weights(7))
    hub.faults[SECOND] = [Fault(status=404)] * 9
    with pytest.raises(NetworkError):
        pull()
    assert (hub_cache.repository(REPO) / "refs/main").read_text() == hub_server.COMMIT
    assert hub_cache.snapshot(REPO) == old
    hub.faults.clear()
    new = pull()
    assert hub_cache.snapshot(REPO) == new != old and new.name == hub.commit
    assert hub.sent_of[FIRST] == 300_000  # the same bytes in both revisions are one blob
    pinned = pull(hub.commit)
    assert pinned == new and not (hub_cache.repository(REPO) / "refs" / hub.commit).exists()


# Trouble that passes


def test_a_cut_connection_goes_on_where_it_was_cut(hub: hub_server.Hub) -> None:
    hub.faults[FIRST] = [Fault(cut=100_000), Fault(cut=1), Fault(cut=0), Fault(cut=99_999)]
    pull()
    assert hub.sent_of[FIRST] == 300_000
    starts = [sent["range"] for sent in hub.requests(FIRST)]
    assert starts == [f"bytes={at}-" for at in (0, 100_000, 100_001, 100_001, 200_000)]


def test_a_cut_that_ends_the_program_is_resumed_by_the_next(hub: hub_server.Hub) -> None:
    hub.faults[SECOND] = [Fault(cut=123_456), *[Fault(cut=0)] * 9]
    with pytest.raises(NetworkError, match=r"the connection to 127.0.0.1 was lost"):
        pull()
    (partial,) = partials()
    assert partial.stat().st_size == 123_456
    hub.faults.clear()
    watcher = Seen()
    pull(watcher=watcher)
    assert hub.sent_of[SECOND] == 300_000 and watcher.earlier[SECOND] == 123_456


def test_a_server_without_ranges_still_gets_there(hub: hub_server.Hub) -> None:
    hub.ranges = False
    hub.faults[FIRST] = [Fault(cut=100_000)]
    folder = pull()
    assert (folder / FIRST).read_bytes() == weights(0)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("name", ["", "config.json", FIRST])
def test_a_refusal_that_passes_is_waited_for(hub: hub_server.Hub, status: int, name: str) -> None:
    hub.faults[name] = [Fault(status=status)]
    assert (pull() / FIRST).read_bytes() == weights(0)
    assert hub.sent_of[FIRST] == 300_000


@pytest.mark.slow
def test_the_wait_the_hub_asks_for_is_kept(hub: hub_server.Hub) -> None:
    hub.faults[FIRST] = [
        Fault(status=429, headers={"retry-after": "1"}),
        Fault(status=429, headers={"ratelimit": '"resolvers";r=0;t=1'}),
    ]
    watcher = Seen()
    pull(watcher=watcher)
    assert [round(seconds) for _, seconds in watcher.waits] == [1, 1] and "HTTP 429" in watcher.waits[0][0]


def test_patience_has_an_end(hub: hub_server.Hub) -> None:
    hub.faults[FIRST] = [Fault(status=503)] * 99
    with pytest.raises(NetworkError, match="HTTP 503"):
        pull()
    assert len(hub.requests(FIRST)) == QUICK.attempts


@pytest.mark.slow
def test_a_slow_trickle_is_not_a_silence(hub: hub_server.Hub) -> None:
    hub.faults[FIRST] = [Fault(pace=(30_000, 0.1))]  # twice as long as the timeout in all
    pull()
    assert len(hub.requests(FIRST)) == 1


def test_a_silence_is_a_cut(hub: hub_server.Hub) -> None:
    hub.faults[FIRST] = [Fault(cut=150_000, stall=3)]
    pull()
    assert [sent["range"] for sent in hub.requests(FIRST)] == ["bytes=0-", "bytes=150000-"]


def test_wrong_bytes_are_fetched_once_more(hub: hub_server.Hub) -> None:
    hub.faults[FIRST] = [Fault(wrong=True)]
    watcher = Seen()
    assert (pull(watcher=watcher) / FIRST).read_bytes() == weights(0)
    assert hub.sent_of[FIRST] == 600_000
    assert watcher.arrived[FIRST] + watcher.earlier[FIRST] == 300_000


def test_a_spoilt_beginning_is_noticed_and_replaced(hub: hub_server.Hub) -> None:
    manifest = read_manifest(REPO)
    blob = manifest.blob(manifest.weights[0])
    blob.parent.mkdir(parents=True)
    blob.with_name(blob.name + ".incomplete").write_bytes(b"\0" * 100_000)
    assert (pull() / FIRST).read_bytes() == weights(0)
    assert hub.sent_of[FIRST] == 500_000


def test_a_beginning_that_is_longer_than_the_file_is_none(hub: hub_server.Hub) -> None:
    manifest = read_manifest(REPO)
    blob = manifest.blob(manifest.weights[0])
    blob.parent.mkdir(parents=True)
    blob.with_name(blob.name + ".incomplete").write_bytes(weights(0) + b"x")
    watcher = Seen()
    assert (pull(watcher=watcher) / FIRST).read_bytes() == weights(0)
    assert watcher.arrived[FIRST] == hub.sent_of[FIRST] == 300_000 and not watcher.earlier
    assert [sent["range"] for sent in hub.requests(FIRST)] == ["bytes=0-"]


def test_a_blob_of_the_wrong_size_is_replaced(hub: hub_server.Hub) -> None:
    folder = pull()
    (folder / FIRST).resolve().write_bytes(b"short")
    assert (pull() / FIRST).read_bytes() == weights(0)


# Trouble that does not pass


@pytest.mark.parametrize("name", [FIRST, "tokenizer.json"])  # a sha256, and git's sha1
def test_wrong_bytes_twice_are_refused_and_removed(hub: hub_server.Hub, name: str) -> None:
    hub.faults[name] = [Fault(wrong=True)] * 9
    with pytest.raises(CheckpointError, match=f"{name} of {REPO} arrives damaged"):
        pull()
    manifest = read_manifest(REPO)
    file = next(file for file in manifest.files if file.name == name)
    assert not manifest.blob(file).exists() and not (manifest.snapshot / name).exists()
    assert not [partial for partial in partials() if partial.name.startswith(file.hash)]
    assert hub.sent_of[name] == 2 * file.size and hub_cache.snapshot(REPO) is None


def test_another_hash_than_the_listed_one_is_refused_before_its_bytes(hub: hub_server.Hub) -> None:
    target = f"{hub.url}/{REPO}/resolve/main/{FIRST}"
    hub.faults[FIRST] = [Fault(status=302, headers={"location": target, "x-linked-etag": f'"{"a" * 64}"'})]
    with pytest.raises(CheckpointError, match="another hash"):
        pull()


@pytest.mark.parametrize("size", [299_999, 300_001, 5, 2**40])
def test_a_lying_size_is_refused_before_its_bytes(hub: hub_server.Hub, size: int) -> None:
    hub.sizes[FIRST] = size
    manifest = read_manifest(REPO)
    with pytest.raises(CheckpointError, match=r"not the .* bytes that the Hub announced"):
        list(each(manifest, manifest.weights[:1], Seen(), policy=QUICK))
    assert not (manifest.snapshot / FIRST).exists()


def test_a_file_that_ends_where_more_was_announced(hub: hub_server.Hub) -> None:
    """All there is has come already: the server has no such range."""
    hub.sizes[FIRST] = 300_001
    manifest = read_manifest(REPO)
    blob = manifest.blob(manifest.weights[0])
    blob.parent.mkdir(parents=True)
    blob.with_name(f"{blob.name}.incomplete").write_bytes(weights(0))
    with pytest.raises(CheckpointError, match="ends before the 300,001 bytes that the Hub announced"):
        list(each(manifest, manifest.weights[:1], Seen(), policy=QUICK))


def test_more_bytes_than_announced_stop_the_stream(hub: hub_server.Hub) -> None:
    hub.faults[FIRST] = [Fault(longer=1 << 30)] * 9
    with pytest.raises(CheckpointError, match="goes on after the 300,000 bytes"):
        pull()
    assert hub.sent_of[FIRST] < 32 * 2**20  # what lay in the sockets' buffers
    assert sum(file.stat().st_size for file in partials()) <= 600_000


@pytest.mark.parametrize(
    "name", ["../evil.safetensors", "/etc/evil.json", "a/../../evil", "..\\evil.json", "a\0b", "\x1b[31m", "a//b", ""]
)
def test_names_that_lead_outside_are_refused(hub: hub_server.Hub, name: str) -> None:
    hub.listed = [{"rfilename": name, "size": 4, "blobId": "a" * 40}]
    with pytest.raises(CheckpointError, match="outside its folder") as refused:
        pull()
    assert refused.value.message.startswith(f"{REPO} names the file {name!a}, which")
    assert not hub_cache.repository(REPO).exists()


@pytest.mark.parametrize(("length", "there"), [(254, True), (255, True), (256, False)])
def test_names_as_long_as_disks_hold_them(hub: hub_server.Hub, length: int, there: bool) -> None:
    hub.listed = [{"rfilename": "\xe9" * 100 + "x" * (length - 200), "size": 4, "blobId": "a" * 40}]
    if there:
        assert len(read_manifest(REPO).weights) == 2
    else:
        with pytest.raises(CheckpointError, match=r"names the file '\xe9+\.\.\.', which no disk can hold"):
            read_manifest(REPO)
    hub.listed = [{"rfilename": "../" + "x" * 200, "size": 4, "blobId": "a" * 40}]
    with pytest.raises(CheckpointError, match=f"names the file '../{'x' * 77}', which"):
        read_manifest(REPO)


def test_a_size_that_is_none_is_refused(hub: hub_server.Hub) -> None:
    for size in (-1, 2**50, True, 1.0, "4", None):
        hub.listed = [{"rfilename": "x.bin", "size": size, "blobId": "a" * 40}]
        with pytest.raises(CheckpointError, match=r"tells no size or no hash of x.bin"):
            read_manifest(REPO)
    for size in (0, 2**50 - 1):
        hub.listed = [{"rfilename": "x.bin", "size": size, "blobId": "a" * 40}]
        assert len(read_manifest(REPO).weights) == 2


@pytest.mark.parametrize("blob", ["../../evil", "", None, "A" * 40, "a" * 41, 7])
def test_a_hash_that_is_none_is_refused(hub: hub_server.Hub, blob: object) -> None:
    hub.listed = [{"rfilename": "x.safetensors", "size": 4, "blobId": blob}]
    with pytest.raises(CheckpointError, match=r"no hash of x.safetensors"):
        pull()


@pytest.mark.parametrize("commit", ["..", "main", "f" * 39, None])
def test_a_commit_that_is_none_is_refused(hub: hub_server.Hub, commit: str) -> None:
    hub.commit = commit
    with pytest.raises(MoecliError):
        pull()
    assert not hub_cache.repository(REPO).exists()


@pytest.mark.parametrize("listing", [[7], [{"size": 4}], [{"rfilename": 4}], "x", [{"rfilename": "a", "size": "4"}]])
def test_a_listing_that_is_none_is_explained(hub: hub_server.Hub, listing: object) -> None:
    hub.listed = listing if isinstance(listing, list) else [{"rfilename": listing, "size": -1, "blobId": "a" * 40}]
    with pytest.raises(MoecliError):
        pull()


def test_an_index_of_files_that_are_not_there(hub: hub_server.Hub) -> None:
    index = {"weight_map": {"a": FIRST, "b": "other.safetensors"}}
    hub.put(f"{REPO}/model.safetensors.index.json", json.dumps(index).encode())
    with pytest.raises(CheckpointError, match=r"names 'other.safetensors', which it does not hold"):
        read_manifest(REPO)
    index["weight_map"]["b"] = "pytorch_model.bin"
    hub.put(f"{REPO}/model.safetensors.index.json", json.dumps(index).encode())
    with pytest.raises(CheckpointError):
        read_manifest(REPO)


def test_files_of_torch_for_want_of_safetensors(hub: hub_server.Hub) -> None:
    """And no pickle that is no state dict of torch."""
    for name in (FIRST, SECOND, "model.safetensors.index.json", "consolidated.safetensors"):
        del hub.files[f"{REPO}/{name}"]
    assert [file.name for file in read_manifest(REPO).weights] == ["pytorch_model.bin"]
    del hub.files[f"{REPO}/pytorch_model.bin"]
    hub.put(f"{REPO}/weights.pkl", b"pickle")
    with pytest.raises(CheckpointError, match=r"holds no weights that can be read, only weights.pkl") as caught:
        read_manifest(REPO)
    assert "safetensors" in (caught.value.hint or "")


def test_shards_cut_for_tensor_parallelism(hub: hub_server.Hub) -> None:
    for name in (FIRST, SECOND, "model.safetensors.index.json"):
        del hub.files[f"{REPO}/{name}"]
    for part in range(2):
        hub.put(f"{REPO}/pytorch_model-00001-TP-{part:03}.safetensors", weights(part))
    with pytest.raises(CheckpointError, match="cut for tensor parallelism") as caught:
        read_manifest(REPO)
    assert caught.value.hint


def test_without_an_index_one_file_or_every_shard(hub: hub_server.Hub) -> None:
    del hub.files[f"{REPO}/model.safetensors.index.json"]
    assert [file.name for file in read_manifest(REPO).weights] == [FIRST, SECOND]
    hub.put(f"{REPO}/model.safetensors", weights(3))
    assert [file.name for file in read_manifest(REPO).weights] == ["model.safetensors"]


STRANGERS = ("adapter_model.safetensors", "model.fp16.safetensors", "value_head.safetensors", "optimizer.safetensors")


@pytest.mark.parametrize("there", [(), (FIRST,), (FIRST, SECOND)])
def test_a_whole_single_file_comes_before_an_index(hub: hub_server.Hub, there: tuple[str, ...]) -> None:
    """As in a folder; a stale index is not fetched, it would make the snapshot look unfinished."""
    hub.put(f"{REPO}/model.safetensors", weights(3))
    for name in {FIRST, SECOND}.difference(there):
        del hub.files[f"{REPO}/{name}"]
    index = {"weight_map": dict.fromkeys(("x", "y"), FIRST) | {"z": SECOND}}
    held = safetensors.numpy.save({name: np.zeros(4, np.float32) for name in ("x", "y", "z", "more")})
    hub.put(f"{REPO}/model.safetensors", held)
    hub.put(f"{REPO}/model.safetensors.index.json", json.dumps(index).encode())
    manifest = read_manifest(REPO)
    assert [file.name for file in manifest.weights] == ["model.safetensors"]
    assert "model.safetensors.index.json" not in [file.name for file in manifest.texts]


def test_strangers_are_not_fetched(hub: hub_server.Hub) -> None:
    for name in STRANGERS:
        hub.put(f"{REPO}/{name}", weights(4))
    assert [file.name for file in read_manifest(REPO).weights] == [FIRST, SECOND]
    del hub.files[f"{REPO}/model.safetensors.index.json"]
    assert [file.name for file in read_manifest(REPO).weights] == [FIRST, SECOND]
    del hub.files[f"{REPO}/{FIRST}"], hub.files[f"{REPO}/{SECOND}"], hub.files[f"{REPO}/pytorch_model.bin"]
    del hub.files[f"{REPO}/model.fp16.safetensors"]
    with pytest.raises(CheckpointError, match=r"in Mistral's own format, which is not read: consolidated"):
        read_manifest(REPO)
    for name in [name for name in hub.files if "consolidated" in name]:
        del hub.files[name]
    with pytest.raises(CheckpointError, match=r"holds adapter_model.safetensors and no model.safetensors"):
        read_manifest(REPO)


@pytest.mark.parametrize(
    ("held", "fetched", "lack"),
    [
        (["tokenizer.json"], ["tokenizer.json"], None),
        (["tokenizer.model"], ["tokenizer.model"], None),
        (["qwen.tiktoken"], ["qwen.tiktoken"], None),
        (["tiktoken.model"], ["tiktoken.model"], None),
        (["tekken.json", "params.json"], ["tekken.json"], "no tokenizer that can be read, only tekken.json: add"),
        ([], [], "no tokenizer that can be read: add --tokenizer"),
        (["tokenizer.model", "tokenizer.json"], ["tokenizer.json", "tokenizer.model"], None),
    ],
)
def test_a_repository_without_a_tokenizer_is_known_before(
    hub: hub_server.Hub, held: list[str], fetched: list[str], lack: str | None
) -> None:
    for path in [path for path in hub.files if "tokenizer" in path or "vocab" in path or "merges" in path]:
        del hub.files[path]
    for name in held:
        hub.put(f"{REPO}/{name}", b"x")
    names = [file.name for file in read_manifest(REPO).texts]
    assert [name for name in names if name in held] == fetched
    assert (tokenizer_among(names) is None) is (lack is not None)
    assert lack is None or lack in lacks_tokenizer(names)


def test_other_tokenizers_are_kept_beside_the_one_that_is_read(hub: hub_server.Hub) -> None:
    hub.put(f"{REPO}/vocab.json", b"{}")
    assert "vocab.json" in [file.name for file in read_manifest(REPO).texts]


# Names


def test_a_ref_that_cannot_be_written_leaves_nothing_beside_it(hub: hub_server.Hub) -> None:
    manifest = read_manifest(REPO)
    refs = manifest.root / "refs"
    (refs / "main" / "a folder").mkdir(parents=True)
    with pytest.raises(DiskError):
        write_ref(manifest)
    assert [each.name for each in refs.iterdir()] == ["main"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the longest paths are of another length")
def test_where_no_link_can_be_made_the_file_itself_lies(tmp_path: Path) -> None:
    """So deep that the way to its blob is longer than a link may be; some file systems have no links at all."""
    (blob := tmp_path / "blob").write_bytes(b"whole")
    folder = tmp_path
    try:
        for _ in range(1400):
            folder /= "d"
            folder.mkdir()
        pointer = folder / "config.json"
        _link(blob, pointer)
        assert not pointer.is_symlink() and pointer.read_bytes() == b"whole" and not blob.exists()
        pointer.unlink()
    finally:
        while folder != tmp_path:
            folder.rmdir()
            folder = folder.parent


# The token


def test_the_token_goes_to_no_other_host(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.gated = True
    with hub_server.serve() as elsewhere:
        elsewhere.files = hub.files
        hub.redirect = elsewhere.url
        hub.faults[FIRST] = [Fault(status=503)]
        elsewhere.faults[FIRST] = [Fault(cut=1000), Fault(status=403)]  # an address that has expired
        pull()
        assert all(sent["authorization"] == f"Bearer {hub.token}" for _, sent in hub.seen)
        assert len(elsewhere.seen) == 4 and all("authorization" not in sent for _, sent in elsewhere.seen)
        assert elsewhere.sent_of[FIRST] == 300_000 and not hub.sent_of[FIRST]


# One shard at a time


def shards_and_rest(hub: hub_server.Hub) -> DownloadManifest:
    for number in range(6):
        hub.put(f"{REPO}/part-{number}.safetensors", weights(number, 1000 + number))
    index = {"weight_map": {str(number): f"part-{number}.safetensors" for number in range(6)}}
    hub.put(f"{REPO}/model.safetensors.index.json", json.dumps(index).encode())
    return read_manifest(REPO)


def test_shards_come_in_order_and_can_go_again(hub: hub_server.Hub) -> None:
    manifest = shards_and_rest(hub)
    most = 0
    for number, (file, path) in enumerate(each(manifest, manifest.weights, Seen(), ahead=1)):
        assert file.name == path.name == f"part-{number}.safetensors"
        assert path.read_bytes() == weights(number, 1000 + number)
        most = max(most, len(list(manifest.snapshot.iterdir())))
        path.unlink()
    assert number == 5 and most <= 3


def test_leaving_early_stops_the_transfers(hub: hub_server.Hub) -> None:
    manifest = read_manifest(REPO)
    hub.faults[SECOND] = [Fault(pace=(1000, 0.02))]
    files = each(manifest, manifest.weights, Seen())
    next(files)
    *_, transfer = [thread for thread in threading.enumerate() if thread.name.endswith("(work)")]
    files.close()
    transfer.join(5)
    assert not transfer.is_alive()
    assert hub.sent_of[SECOND] < 300_000
