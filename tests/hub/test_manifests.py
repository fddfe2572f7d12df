"""What is fetched of a repository: which files, in which order, of which size and hash; what is there of it already."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moecli.errors import CheckpointError, DiskError, NetworkError
from moecli.hub import bounds, download
from moecli.hub import headers as remote
from moecli.hub import manifest as manifests
from moecli.hub.cache import blob_hash
from moecli.hub.download import (
    _alone,
    _link,
    _replacing,
    check_space,
    each,
    is_whole,
    present,
    share_a_disk,
    unfinished,
)
from moecli.hub.failures import HubBusy
from moecli.hub.manifest import DownloadManifest, RemoteFile, cached_manifest, list_files, read_manifest, read_texts
from moecli.hub.retry import RetryPolicy, Stopped
from moecli.hub.transfer import Transfer, _Partial
from moecli.model import catalog
from tests.hub.test_download import Seen
from tests.support import hub_server
from tests.support.hub_server import COMMIT, Fault

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
    found = blob_hash("0" * (64 if large else 40), len(data))
    found.update(data)
    return RemoteFile(name, len(data), found.hexdigest())


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
    assert [file.name for file in found.texts] == list(TEXTS)
    assert [file.name for file in found.weights] == ["a.safetensors", "b.safetensors"]
    assert found.files == found.texts + found.weights and found.bytes == sum(file.size for file in found.files)
    data = json.dumps(index).encode()
    assert found.weights[0] == named("a.safetensors", data, large=True) and found.texts[1] == named(
        "generation_config.json", data
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
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
        "tekken.json",
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
        hub.raw[""] = lambda send, text=text: send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
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


# What is there already


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DownloadManifest:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    texts, weights = (
        (named("config.json", b"{}"),),
        (named("a.safetensors", b"x" * 100, True), named("b.safetensors", b"y" * 50, True)),
    )
    found = DownloadManifest(REPO, "main", COMMIT, texts, weights, {}, None, False)
    found.root.mkdir(parents=True)
    (found.root / "blobs").mkdir()
    found.snapshot.mkdir(parents=True)
    return found


def test_what_is_present_is_counted(manifest: DownloadManifest) -> None:
    file = manifest.weights[0]
    blob, pointer = manifest.blob(file), manifest.snapshot / file.name
    partial = blob.with_name(f"{file.hash}.incomplete")
    assert present(manifest, file) == 0 and download.cached(manifest, file) is None
    for size, counted in ((0, 0), (60, 60), (100, 100), (101, 0)):
        partial.write_bytes(b"z" * size)
        assert unfinished(blob, file) == present(manifest, file) == counted
    partial.write_bytes(b"z" * 60)
    for size, whole in ((99, False), (101, False), (100, True)):
        blob.write_bytes(b"x" * size)
        assert is_whole(blob, file) == whole and present(manifest, file) == (100 if whole else 60)
        assert download.cached(manifest, file) == (blob if whole else None)
    pointer.symlink_to(blob)
    assert download.cached(manifest, file) == pointer and not is_whole(blob.with_name("none"), file)


@pytest.mark.parametrize("free", [90, 89])
def test_what_is_still_to_come_has_to_fit(
    free: int, manifest: DownloadManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(download, "free_space", lambda path: (asked.append(path), free)[1])
    manifest.blob(manifest.weights[0]).with_name(f"{manifest.weights[0].hash}.incomplete").write_bytes(b"x" * 60)
    if free == 90:
        check_space(manifest, manifest.weights)
    else:
        with pytest.raises(DiskError) as refused:
            check_space(manifest, manifest.weights)
        assert refused.value.message == f"90 B are to be fetched and 89 B are free in {manifest.root.parent}"
        assert refused.value.hint == "make room, or set HF_HOME to a folder on a larger disk"
    assert asked == [manifest.root]


def test_folders_on_one_disk(tmp_path: Path) -> None:
    assert share_a_disk(tmp_path / "none" / "deep", tmp_path)
    if Path("/proc").is_dir():
        assert not share_a_disk(tmp_path, Path("/proc"))


def test_a_link_takes_the_place_of_what_is_not_whole(manifest: DownloadManifest) -> None:
    file = manifest.weights[0]
    blob, pointer = manifest.blob(file), manifest.snapshot / file.name
    blob.write_bytes(b"x" * 100)
    for _ in range(2):
        _link(blob, pointer)
        assert pointer.readlink() == Path("../../blobs") / file.hash and pointer.read_bytes() == b"x" * 100
        pointer.unlink()
        pointer.write_bytes(b"short")


def test_a_name_is_replaced_or_left(tmp_path: Path) -> None:
    path = tmp_path / "main"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), _replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("main", "old")]
    with _replacing(path) as temporary:
        assert temporary.parent == tmp_path and temporary.name.startswith("main.") and temporary.suffix == ".tmp"
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("main", "new")]


def test_who_waits_for_another_process_says_so_once(tmp_path: Path, hub: hub_server.Hub) -> None:
    told: list[int] = []
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with _alone(tmp_path / "lock", lambda: told.append(0)):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(10) and not told

    def busy() -> None:
        told.append(1)
        leave.set()

    with _alone(tmp_path / "lock", busy):
        assert told == [1]
    thread.join()


def test_a_ref_is_written_once_and_never_for_a_commit(manifest: DownloadManifest) -> None:
    ref = manifest.root / "refs" / "main"
    download.write_ref(manifest)
    assert ref.read_text() == COMMIT and [each.name for each in ref.parent.iterdir()] == ["main"]
    stamp = ref.stat().st_mtime_ns
    download.write_ref(manifest)
    assert ref.stat().st_mtime_ns == stamp
    shutil.rmtree(ref.parent)
    download.write_ref(replace(manifest, revision=COMMIT))
    assert not ref.parent.exists()
    download.write_ref(replace(manifest, revision="refs/pr/7"))
    assert (manifest.root / "refs/refs/pr/7").read_text() == COMMIT


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_files_come_in_order_with_some_ahead(ahead: int, manifest: DownloadManifest) -> None:
    files = [RemoteFile(str(number), number, "") for number in range(6)]
    begun: list[str] = []
    go = threading.Semaphore(0)

    def place(_: DownloadManifest, file: RemoteFile, transfer: Transfer) -> Path:
        assert (transfer.repo, transfer.commit, transfer.policy) == (REPO, COMMIT, RetryPolicy())
        begun.append(file.name)
        if int(file.name) > ahead:
            go.acquire()
        return Path(file.name)

    fetched = each(manifest, files, Seen(), ahead, place=place)
    file, path = next(fetched)
    assert (file, path) == (files[0], Path("0"))
    settle()
    assert sorted(begun) == [str(number) for number in range(ahead + 1)]
    for _ in files:
        go.release()
    assert list(fetched) == [(file, Path(file.name)) for file in files[1:]] and sorted(begun) == list("012345")


def settle() -> None:
    for thread in threading.enumerate():
        if thread.name.endswith("(work)"):
            thread.join(0.2)


def test_headers_are_read_where_they_are(hub: hub_server.Hub) -> None:
    """From the cache; else asked of the Hub. A file that is listed and gone is named."""
    from tests.support.headers import header

    start, size, *_ = header({"a": ("F32", (2,))})
    hub.put(f"{REPO}/model.safetensors", start.ljust(size, b"\0"))
    found = read_manifest(REPO, None, ONCE)
    (asked,) = download.headers(found, None)
    assert (
        list(asked) == ["a"]
        and asked["a"].path == Path("model.safetensors")
        and len(hub.requests("model.safetensors")) == 1
    )
    download.fetch_all(found, Seen(), ONCE)
    hub.seen.clear()
    (here,) = download.headers(found, None)
    assert here == asked and not hub.seen
    shutil.rmtree(found.root)
    del hub.files[f"{REPO}/model.safetensors"]
    with pytest.raises(CheckpointError, match=f"{REPO} lists 'model.safetensors' and does not hold it") as refused:
        list(download.headers(found, None))
    assert refused.value.hint == "try again later"


# One transfer


def transfer(watcher: Seen, policy: RetryPolicy = ONCE) -> Transfer:
    return Transfer(REPO, COMMIT, watcher, policy, threading.Event())


def test_bytes_that_are_there_are_counted_and_hashed(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    file, seen = named("x", data, large=True), Seen()
    (tmp_path / f"{file.hash}.incomplete").write_bytes(data[: 2**20 + 5])
    with _Partial(tmp_path / file.hash, file, seen, threading.Event()) as part:
        assert part.size == 2**20 + 5 and seen.earlier == {"x": 2**20 + 5} and not seen.arrived
        part.append(data[2**20 + 5 :])
        assert part.size == len(data) and seen.arrived == {"x": len(data) - 2**20 - 5}
        assert part.settled()
    assert (tmp_path / file.hash).read_bytes() == data and [each.name for each in tmp_path.iterdir()] == [file.hash]


def test_wrong_bytes_are_removed_and_taken_back(tmp_path: Path) -> None:
    file, seen = named("x", b"right", large=True), Seen()
    with _Partial(tmp_path / file.hash, file, seen, threading.Event()) as part:
        part.append(b"wrong")
        assert not part.settled()
    assert not list(tmp_path.iterdir()) and seen.arrived == {"x": 5} and seen.earlier == {"x": -5}


def test_who_is_stopped_counts_nothing_more(tmp_path: Path) -> None:
    file, stop, seen = named("x", b"right", large=True), threading.Event(), Seen()
    with _Partial(tmp_path / file.hash, file, seen, stop) as part:
        part.append(b"ri")
        stop.set()
        with pytest.raises(Stopped):
            part.append(b"ght")
    assert seen.arrived == {"x": 2}


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (Fault(status=416), CheckpointError, "model.safetensors ends before the 7 bytes that the Hub announced"),
        (Fault(cut=3), HubBusy, "the connection to 127.0.0.1 was lost"),
        (Fault(status=404), NetworkError, "the Hub knows no model"), (Fault(status=503), HubBusy, "answers HTTP 503"),
        (Fault(status=403), NetworkError, "is gated"),
    ],
)  # fmt: skip
def test_a_transfer_that_fails_says_how(
    fault: Fault, kind: type, words: str, hub: hub_server.Hub, tmp_path: Path
) -> None:
    file = named("model.safetensors", b"weights", large=True)
    hub.faults[file.name] = [fault]
    with pytest.raises(kind) as failed:
        transfer(Seen()).fetch(file, tmp_path / file.hash)
    assert words in failed.value.message and type(failed.value) is kind


def test_an_answer_that_ends_early_without_a_length_is_a_cut(hub: hub_server.Hub, tmp_path: Path) -> None:
    file = named("model.safetensors", b"weights", large=True)
    hub.raw[file.name] = lambda send: send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nwei")
    with pytest.raises(HubBusy) as cut:
        transfer(Seen()).fetch(file, tmp_path / file.hash)
    assert cut.value.message == "model.safetensors was cut at 3 B" and cut.value.hint == "try again later"
    assert (tmp_path / f"{file.hash}.incomplete").read_bytes() == b"wei"


def test_an_expired_address_is_tried_again(hub: hub_server.Hub, tmp_path: Path) -> None:
    """What the Hub itself forbids is not."""
    file, seen = named("model.safetensors", b"weights", large=True), Seen()
    with hub_server.serve() as elsewhere:
        elsewhere.files = hub.files
        hub.redirect = elsewhere.url
        elsewhere.faults[file.name] = [Fault(status=403)]
        with pytest.raises(HubBusy, match=r"the host of model.safetensors answers HTTP 403"):
            transfer(seen).fetch(file, tmp_path / file.hash)
        transfer(seen).fetch(file, tmp_path / file.hash)
    assert (tmp_path / file.hash).read_bytes() == b"weights" and seen.arrived == {file.name: 7}


def test_nothing_is_asked_for_what_is_complete(hub: hub_server.Hub, tmp_path: Path) -> None:
    file = named("model.safetensors", b"weights", large=True)
    (tmp_path / f"{file.hash}.incomplete").write_bytes(b"weights")
    transfer(Seen()).fetch(file, tmp_path / file.hash)
    assert not hub.seen and (tmp_path / file.hash).read_bytes() == b"weights"


def test_waits_are_told_of_the_file(hub: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moecli.hub.retry._WORTH_TELLING", 0.0)
    file, waits = named("model.safetensors", b"weights", large=True), list[tuple[RemoteFile, str, float]]()
    hub.faults[file.name] = [Fault(status=503)]

    class Told(Seen):
        def wait(self, file: RemoteFile, why: str, seconds: float | None) -> None:
            waits.append((file, why, seconds or 0))

    transfer(Told(), RetryPolicy(attempts=2, first_wait=0.01)).fetch(file, tmp_path / file.hash)
    ((told, why, seconds),) = waits
    assert told == file and "HTTP 503" in why and 0.005 <= seconds <= 0.015


def test_a_disk_that_is_full_says_what_is_lacking(tmp_path: Path) -> None:
    import errno

    file = named("x", b"right", large=True)
    with _Partial(tmp_path / file.hash, file, Seen(), threading.Event()) as part:
        part.append(b"ri")
        full = part._trouble(OSError(errno.ENOSPC, "No space left on device"))
        other = part._trouble(OSError(errno.EIO, "Input/output error"))
    assert full.message == f"the disk is full: 3 B of x do not fit into {tmp_path}"
    assert full.hint == "make room and repeat the command: it goes on where it stopped"
    assert other.message == f"{tmp_path / file.hash}.incomplete cannot be written: Input/output error"


def test_the_patterns_of_names() -> None:
    assert manifests._PLAIN_NAME.fullmatch("model-00001-of-2.safetensors+x_y") and not manifests._PLAIN_NAME.fullmatch(
        ".x"
    )
    assert not manifests._PLAIN_NAME.fullmatch("-x") and not manifests._PLAIN_NAME.fullmatch("a b")


# How much at once, and how patiently


def test_four_files_and_eight_headers_at_once(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    each_file, in_background = download.each, download.each_in_background

    def noted_files(*arguments: Any, **more: Any) -> Any:
        asked.append(more["ahead"])
        return each_file(*arguments, **more)

    def noted_headers(action: Any, items: Any, at_once: int) -> Any:
        asked.append(at_once)
        return in_background(action, items, at_once)

    monkeypatch.setattr(download, "each", noted_files)
    for room in (download, remote):
        monkeypatch.setattr(room, "each_in_background", noted_headers)
    download.fetch_all(read_manifest(REPO, None, ONCE), Seen(), ONCE)
    assert asked == [3, 3]  # beside the one that is waited for: texts, then weights
    asked.clear()
    assert remote.Repository(REPO, None).headers({}) == {}
    list(download.headers(replace(read_manifest(REPO, None, ONCE), weights=()), None))
    assert asked == [8, 8]


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


def test_what_is_there_is_read_a_mebibyte_at_a_time(tmp_path: Path) -> None:
    found: list[int] = []

    class Told(Seen):
        def found(self, file: RemoteFile, size: int) -> None:
            found.append(size)

    file = named("x", bytes(2**21 + 9), large=True)
    (tmp_path / f"{file.hash}.incomplete").write_bytes(bytes(2**21 + 9))
    with _Partial(tmp_path / file.hash, file, Told(), threading.Event()) as part:
        assert part.settled()
    assert found == [2**20, 2**20, 9]


def test_nothing_is_written_where_a_file_is_whole(hub: hub_server.Hub) -> None:
    """By its link; by its blob alone, a link is made and nothing fetched. Both are told as found."""
    found = read_manifest(REPO, None, ONCE)
    file, seen = found.weights[0], Seen()
    list(each(found, [file], seen, policy=ONCE))
    assert seen.arrived == {file.name: 7} and not seen.earlier
    (found.snapshot / file.name).unlink()
    hub.seen.clear()
    for _ in range(2):
        seen = Seen()
        assert list(each(found, [file], seen, policy=ONCE)) == [(file, found.snapshot / file.name)]
        assert seen.earlier == {file.name: 7} and not seen.arrived and not hub.seen
        assert (found.snapshot / file.name).readlink() == Path("../../blobs") / file.hash


def test_trouble_with_the_cache_folder_is_explained(manifest: DownloadManifest) -> None:
    with pytest.raises(DiskError) as said, download._explained(manifest.root):
        raise OSError(5, "Input/output error")
    assert said.value.message == f"{manifest.root} cannot be written: Input/output error"
    assert said.value.hint == "HF_HOME or HF_HUB_CACHE names another folder for the cache"


def test_another_process_is_given_half_a_second_before_it_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, dict[str, float]]] = []

    @contextlib.contextmanager
    def lock(path: Path, **more: float) -> Iterator[None]:
        asked.append((path, more))
        if more:
            raise TimeoutError
        yield

    library = SimpleNamespace(utils=SimpleNamespace(WeakFileLock=lock))
    monkeypatch.setattr(download.client, "library", lambda: library)
    told: list[int] = []
    with _alone(Path("x"), lambda: told.append(len(asked))):
        assert told == [1] and asked == [(Path("x"), {"timeout": 0.5}), (Path("x"), {})]


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


@pytest.mark.parametrize("form", ['"{}"', 'W/"{}"', "{}", ""])
def test_a_hash_that_the_hub_repeats(form: str, hub: hub_server.Hub, tmp_path: Path) -> None:
    file = named("model.safetensors", b"weights", large=True)
    target = f"/{REPO}/resolve/{COMMIT}/{file.name}"
    for hash_, fits in ((file.hash, True), ("a" * 64, not form)):
        hub.faults[file.name] = [Fault(status=302, headers={"location": target, "x-linked-etag": form.format(hash_)})]
        if fits:
            transfer(Seen()).fetch(file, tmp_path / file.hash)
            assert (tmp_path / file.hash).read_bytes() == b"weights"
        else:
            with pytest.raises(CheckpointError, match=r"model.safetensors has another hash than the Hub has listed"):
                transfer(Seen()).fetch(file, tmp_path / "other")
