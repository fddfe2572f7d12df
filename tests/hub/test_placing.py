"""What of a download is there already, and how files get their place in the cache."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moecli.errors import CheckpointError, DiskError
from moecli.hub import download
from moecli.hub import headers as remote
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
from moecli.hub.manifest import DownloadManifest, RemoteFile, read_manifest
from moecli.hub.retry import RetryPolicy
from moecli.hub.transfer import Transfer
from tests.hub.conftest import ONCE, REPO, named
from tests.hub.test_download import Seen
from tests.support import hub_server
from tests.support.hub_server import COMMIT
from tests.support.processes import wait_for


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
    wait_for(lambda: len(begun) > ahead)
    assert sorted(begun) == [str(number) for number in range(ahead + 1)]
    for _ in files:
        go.release()
    assert list(fetched) == [(file, Path(file.name)) for file in files[1:]] and sorted(begun) == list("012345")


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


def test_a_disk_without_room_for_a_link_is_full(manifest: DownloadManifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no links at all the file itself takes the place; its blob stays where the disk is full."""
    file = manifest.weights[0]
    blob, pointer = manifest.blob(file), manifest.snapshot / file.name
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EPERM):
        blob.write_bytes(b"x" * 100)

        def refused(self: Path, target: str, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(Path, "symlink_to", refused)
        if number == errno.EPERM:
            _link(blob, pointer)
            assert not blob.exists() and pointer.read_bytes() == b"x" * 100
        else:
            with pytest.raises(OSError, match=os.strerror(number)):
                _link(blob, pointer)
            assert blob.exists() and not pointer.exists()
