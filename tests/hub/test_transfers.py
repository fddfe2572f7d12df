"""One file on its way: counted, hashed, cut, refused, and the disk that takes it."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from moecli.errors import CheckpointError, DiskError, NetworkError
from moecli.hub.failures import HubBusy
from moecli.hub.manifest import RemoteFile
from moecli.hub.retry import RetryPolicy, Stopped
from moecli.hub.transfer import Transfer, _Partial
from tests.hub.conftest import ONCE, REPO, named
from tests.hub.test_download import Seen
from tests.support import hub_server
from tests.support.hub_server import COMMIT, Fault


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
    file = named("x", b"right", large=True)
    with _Partial(tmp_path / file.hash, file, Seen(), threading.Event()) as part:
        part.append(b"ri")
        full = part._trouble(OSError(errno.ENOSPC, "No space left on device"))
        other = part._trouble(OSError(errno.EIO, "Input/output error"))
    assert full.message == f"the disk is full: 3 B of x do not fit into {tmp_path}"
    assert full.hint == "make room and repeat the command: it goes on where it stopped"
    assert other.message == f"{tmp_path / file.hash}.incomplete cannot be written: Input/output error"


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


def test_every_step_of_a_transfer_explains_a_disk_that_fails(tmp_path: Path) -> None:
    file = named("x", b"right", large=True)
    blob, partial = tmp_path / file.hash, tmp_path / f"{file.hash}.incomplete"
    partial.mkdir()
    with pytest.raises(DiskError, match=f"{partial} cannot be written: Is a directory"):
        _Partial(blob, file, Seen(), threading.Event()).__enter__()
    partial.rmdir()
    with _Partial(blob, file, Seen(), threading.Event()) as part:
        part.append(b"rig")
        opened = part._out
        part._out = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
        with pytest.raises(DiskError, match="the disk is full: 2 B of x do not fit"):
            part.append(b"ht")
        part._out.close()
        part._out = opened
        part.append(b"ht")
        blob.mkdir()
        with pytest.raises(DiskError, match=f"{partial} -> {blob}|cannot be written: Is a directory"):
            part.settled()
    assert partial.read_bytes() == b"right"


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
