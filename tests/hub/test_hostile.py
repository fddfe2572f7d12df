"""A hostile or sick Hub: every answer ends soon, in bounded memory, with one clear error or with success."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import resource
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import close_session, constants

import moecli as package
from moecli.checkpoint.files import SAFETENSORS
from moecli.errors import MoecliError, NetworkError
from moecli.hub import bounds, client
from moecli.hub.download import fetch_all
from moecli.hub.headers import read_remote
from moecli.hub.manifest import read_manifest
from moecli.hub.retry import RetryPolicy
from tests.hub.test_download import Seen
from tests.support import hub_server
from tests.support.hub_server import COMMIT, Fault, Send

REPO = "somebody/some-moe"
TINY = Path(package.__file__).parent / "tiny"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
ONCE = RetryPolicy(attempts=2, first_wait=0.01)
MIB = 1024**2
OK = b"HTTP/1.1 200 OK\r\n"
OPEN = OK + b"\r\n"  # until the connection closes
GUARDED_SECONDS, GUARDED_BYTES = 5, 500 * MIB


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    """A model, and a client that is silent for 0.3 s at most."""
    with hub_server.serve_library(monkeypatch, timeout=0.3) as running:
        for file in TINY.iterdir():
            running.put(f"{REPO}/{file.name}", file.read_bytes())
        yield running


def pull() -> object:
    return fetch_all(read_manifest(REPO, None, ONCE), Seen(), ONCE)


def inspect() -> object:
    return read_remote(REPO)


def guarded(action: Callable[[], object]) -> MoecliError:
    """The failure that an action ends with, soon and in little memory."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(MoecliError) as caught:
        action()
    assert time.monotonic() - began < GUARDED_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GUARDED_BYTES
    assert caught.value.message.isprintable() and len(caught.value.message) < 400
    return caught.value


def endless(start: bytes, piece: bytes, pause: float = 0) -> Callable[[Send], object]:
    def answer(send: Send) -> None:
        send(start)
        while True:
            send(piece)
            time.sleep(pause)

    return answer


def once(*pieces: bytes, then: float = 0) -> Callable[[Send], object]:
    def answer(send: Send) -> None:
        for piece in pieces:
            send(piece)
        time.sleep(then)

    return answer


def redirect(target: str) -> Callable[[Send], object]:
    return once(f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode())


def body(data: bytes, *headers: str) -> Callable[[Send], object]:
    lines = "".join(f"{line}\r\n" for line in headers)
    return once(OK + f"{lines}Content-Length: {len(data)}\r\n\r\n".encode() + data)


def bomb(size: int) -> bytes:
    """It ends without a checksum; compressed once, as a block after a full flush knows nothing of those before it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    first, again = (packer.compress(b"[" * MIB) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + again * (size // MIB - 1)


# What any request may be answered with

EVERYWHERE: dict[str, Callable[[Send], object]] = {
    "endless": endless(OPEN, b"[" * MIB),
    "endless, and of a length": endless(OK + b"Content-Length: 9999999999999\r\n\r\n", b" " * MIB),
    "endless chunks": endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"100000\r\n" + b"[" * MIB + b"\r\n"),
    "a slow trickle": endless(OPEN, b" ", 0.05),
    "a slow trickle of headers": endless(OK, b"X-A: b\r\n", 0.05),
    "a slow trickle of a status": endless(b"HTTP/1.1 200 O", b"K", 0.05),
    "endless headers": endless(OK, b"X-A: b\r\n" * 1000),
    "an endless header": endless(OK + b"X-A: ", b"a" * MIB),
    "an endless status": endless(b"HTTP/1.1 200 ", b"a" * MIB),
    "endless informational answers": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "silence": once(then=1),
    "silence after the headers": once(OK + b"Content-Length: 5\r\n\r\n", then=1),
    "an end at once": once(),
    "a truncated body": once(OK + b"Content-Length: 500\r\n\r\n{}"),
    "no HTTP": once(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "binary": once(bytes(range(256)) * 100),
    "two lengths": once(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
    "a negative length": once(OK + b"Content-Length: -1\r\n\r\n{}"),
    "a length in words": once(OK + b"Content-Length: many\r\n\r\n{}"),
    "nested deeply": body(b"[" * 200_000 + b"]" * 200_000),
    "an object nested deeply": body(b'{"a":' * 200_000),
    "many empty values": body(b"[" + b"[]," * 5_000_000 + b"[]]"),
    "a number of many digits": body(b'{"sha": ' + b"1" * 100_000 + b"}"),
    "a bomb": body(bomb(400 * MIB), "Content-Encoding: gzip"),
    "a bomb in a bomb": body(gzip.compress(bomb(1024 * MIB)), "Content-Encoding: gzip, gzip"),
    "a brotli bomb": body(b"\x5b\xff\xff\xff" * 1000, "Content-Encoding: br"),
    "a zstd bomb": body(b"\x28\xb5\x2f\xfd" * 1000, "Content-Encoding: zstd"),
    "an unknown encoding": body(bz2.compress(b"{}"), "Content-Encoding: bzip2"),
    "a web page": body(b"<html>Log in, please</html>", "Content-Type: text/html; charset=utf-8"),
    "a web page without a type": body(b"<html>Log in, please</html>"),
    "not UTF-8": body(b"\xff\xfe{}" * 100),
    "nothing": body(b""),
    "a null": body(b"null"),
    "a part nobody asked for": once(b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 7-8/9\r\n\r\n{}"),
    "redirects without a target": once(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"),
    "a redirect with an endless body": endless(b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n", b" " * MIB),
    "a redirect to a file": redirect("file:///etc/passwd"),
    "a redirect to nowhere": redirect("http://"),
    "a redirect to the secrets of a cloud": redirect("http://169.254.169.254/latest/meta-data/"),
    "the same in another spelling": redirect("http://0xA9FEA9FE/"),
    "the same in IPv6": redirect("http://[::ffff:169.254.169.254]/"),
    "a redirect to no address": redirect("http://[::bad/"),
    "a redirect to a host of many letters": redirect(f"http://{'a' * 300}.example.org/"),
}


@pytest.mark.slow
@pytest.mark.parametrize("answer", EVERYWHERE)
@pytest.mark.parametrize(("name", "action"), [("", pull), (CONFIG, inspect), (WEIGHTS, inspect)])
def test_any_answer_ends(hub: hub_server.Hub, name: str, action: Callable[[], object], answer: str) -> None:
    hub.raw[name] = EVERYWHERE[answer]
    guarded(action)
    assert hub.sent < 200 * MIB


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer", [name for name in EVERYWHERE if "trickle" in name or "endless" in name or "redirect" in name]
)
def test_any_answer_to_a_transfer_ends(hub: hub_server.Hub, answer: str) -> None:
    hub.raw[WEIGHTS] = EVERYWHERE[answer]
    guarded(pull)


@pytest.mark.parametrize(
    "status", [201, 204, 300, 304, 305, 400, 402, 405, 410, 418, 421, 451, 499, 501, 505, 511, 599, 799]
)
def test_any_status_is_named(hub: hub_server.Hub, status: int) -> None:
    for name in ("", CONFIG, WEIGHTS):
        hub.raw = {name: once(f"HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n".encode())}
        assert str(status) in guarded(pull).message


def test_redirects_without_end(hub: hub_server.Hub) -> None:
    count = itertools.count()
    for target in (lambda: "/api/models/a/b", lambda: f"{hub.url}/{REPO}/resolve/main/{CONFIG}?{next(count)}"):
        hub.raw = dict.fromkeys(("", CONFIG), lambda send, target=target: redirect(target())(send))
        assert "redirects without end" in guarded(pull).message
        assert len(hub.seen) <= bounds.MOST_REDIRECTS + 1
        hub.seen.clear()


def test_a_redirect_that_goes_on_is_followed(hub: hub_server.Hub) -> None:
    """A repository that was renamed."""
    for path in [path for path in hub.files if path.startswith(REPO)]:
        hub.files[path.replace("somebody", "another")] = hub.files[path]
    old = hub.raw[""] = redirect("/api/models/another/some-moe")
    hub.raw[""] = lambda send: (hub.raw.pop(""), old(send))
    assert read_manifest(REPO, None, ONCE).commit == COMMIT


NAMES_OF_HOSTS = {
    "huggingface.co": ["192.0.2.7", "2001:db8::7"], "cdn.example.org": ["192.0.2.8"],
    "mirror.example.org": ["127.0.0.1"],
    "metadata.example.org": ["192.0.2.9", "169.254.169.254"], "inner.example.org": ["127.0.0.2"],
    "six.example.org": ["fe80::1%2"], "mapped.example.org": ["::ffff:169.254.0.1"], "none.example.org": ["0.0.0.0"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("home", "target", "refused"),
    [
        ("huggingface.co", "cdn.example.org", None), ("huggingface.co", "unknown.example.org", None),
        ("huggingface.co", "192.0.2.8", None), ("huggingface.co", "metadata.example.org", "169.254.169.254"),
        ("huggingface.co", "six.example.org", "fe80::1"), ("huggingface.co", "mapped.example.org", "169.254.0.1"),
        ("huggingface.co", "none.example.org", "0.0.0.0"), ("huggingface.co", "inner.example.org", "127.0.0.2"),
        ("huggingface.co", "localhost", "127.0.0.1"), ("huggingface.co", "127.1", "127.0.0.1"),
        ("huggingface.co", "[::1]", "::1"), ("127.0.0.1", "localhost", None), ("localhost", "127.0.0.1", None),
        ("mirror.example.org", "inner.example.org", None), ("mirror.example.org", "127.0.0.9", None),
        ("mirror.example.org", "metadata.example.org", "169.254.169.254"), ("127.0.0.1", "169.254.1.1", "169.254.1.1"),
        ("169.254.1.1", "169.254.1.1", None), ("none.example.org", "none.example.org", None),
    ],
)  # fmt: skip
def test_redirects_stay_in_the_network(home: str, target: str, refused: str | None, monkeypatch) -> None:
    """What a name leads to counts, too; the Hub's own host is the user's choice."""

    def getaddrinfo(name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        if name not in NAMES_OF_HOSTS:
            raise socket.gaierror("no such name")
        return [(None, None, None, "", (address, 0)) for address in NAMES_OF_HOSTS[name]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    url = SimpleNamespace(scheme="https", host=target)
    with pytest.raises(NetworkError, match=f"redirects to {refused}, which") if refused else nullcontext():
        client._check_redirect(home, url)


def test_where_a_proxy_is_asked_no_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org:3128")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("looked up"))
    client._check_redirect("huggingface.co", SimpleNamespace(scheme="https", host="cdn.example.org"))


@pytest.fixture
def two_answers(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> hub_server.Hub:
    """A name service that tells who looks first of a host of the network, and who connects of this machine."""
    asked = socket.getaddrinfo

    def getaddrinfo(name: str, port: int | None, *rest: object, **more: Any) -> list[Any]:
        if name.endswith(".example.org"):
            name = "192.0.2.7" if port is None else "127.0.0.1"
        return asked(name, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    url = hub.url.replace("127.0.0.1", "hub.example.org")
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    return hub


def test_where_a_redirect_leads_is_seen_once_it_is_connected_to(two_answers: hub_server.Hub) -> None:
    """What was looked up before may have changed; not a byte is sent."""
    with socket.create_server(("127.0.0.1", 0)) as inner:
        two_answers.redirect = f"http://cdn.example.org:{inner.getsockname()[1]}"
        assert "redirects to 127.0.0.1, which is no host of the network" in guarded(pull).message
        inner.settimeout(5)
        connection, _ = inner.accept()
        with connection:
            connection.settimeout(5)
            assert connection.recv(1) == b""


def test_a_proxy_may_be_on_this_machine(two_answers: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the user's choice, also for what a Hub redirects to; another service of this machine is not."""
    monkeypatch.setenv("HTTP_PROXY", two_answers.url)
    close_session()
    cdn = f"http://cdn.example.org/{REPO}/resolve/{COMMIT}/{WEIGHTS}"
    two_answers.raw[WEIGHTS] = lambda send: (two_answers.raw.pop(WEIGHTS), redirect(cdn)(send))
    try:
        pull()
        assert [path for path, _ in two_answers.seen].count(cdn) == 1
        two_answers.raw[WEIGHTS] = redirect("http://127.0.0.1/")
        assert "redirects to 127.0.0.1, which" in guarded(inspect).message
    finally:
        close_session()


def test_a_hub_on_this_machine_may_redirect_within_it(hub: hub_server.Hub) -> None:
    with hub_server.serve() as elsewhere:
        elsewhere.files = hub.files
        hub.redirect = elsewhere.url.replace("127.0.0.1", "localhost")
        pull()
        assert elsewhere.sent_of[WEIGHTS] == len((TINY / WEIGHTS).read_bytes())


# Lies in a listing


NAMES = ("..", "../x.json", "/etc/passwd", "a/../../b.json", "..\\x.json", "C:\\x.json", "x\0.json", "\x1b]0;x\x07")
NO_NAMES = ("a//b", "", 7, "x" * 5000 + ".safetensors", "\xe9" * 200, "\u202etxt.safetensors", None, ["x"], {"a": 1})


@pytest.mark.parametrize("name", [*NAMES, *NO_NAMES])
def test_names_no_disk_holds(hub: hub_server.Hub, name: object) -> None:
    hub.listed = [{"rfilename": name, "size": 4, "blobId": "a" * 40}]
    guarded(pull)


SIBLINGS = (None, {}, [[]], "x", [None], 7)
COMMITS = (7, None, "../" + "a" * 37, ["a" * 40])


@pytest.mark.parametrize("change", [*({"siblings": each} for each in SIBLINGS), *({"sha": each} for each in COMMITS)])
def test_a_listing_of_the_wrong_kind(hub: hub_server.Hub, change: dict[str, object]) -> None:
    hub.raw[""] = body(json.dumps({"sha": COMMIT, "siblings": []} | change).encode())
    guarded(pull)


def test_odd_but_harmless_listings(hub: hub_server.Hub) -> None:
    info = client.listing(REPO, None)
    for change in ({"tags": 7}, {"tags": [None, 7]}, {"gated": [1]}, {"cardData": "x"}, {"tags": {"a": 1}}):
        hub.raw[""] = body(json.dumps(info | change).encode(), "Content-Type: text/plain")
        assert read_manifest(REPO, None, ONCE).commit == COMMIT


@pytest.mark.slow
def test_a_million_files(hub: hub_server.Hub) -> None:
    file = b'{"rfilename": "a/%07d", "size": 1, "blobId": "' + b"a" * 40 + b'"},'
    hub.raw[""] = once(
        OPEN, b'{"siblings": [', *(b"".join(file % n for n in range(m, m + 1000)) for m in range(0, 10**6, 1000))
    )
    assert "longer than" in guarded(pull).message


@pytest.mark.parametrize("name", [CONFIG, "tokenizer.json", WEIGHTS])
@pytest.mark.parametrize("change", [-1, 1, 10**6])
def test_sizes_that_lie(hub: hub_server.Hub, name: str, change: int) -> None:
    hub.sizes[name] = hub.files[f"{REPO}/{name}"].size + change
    guarded(pull)


def test_a_config_that_changes_after_the_listing(hub: hub_server.Hub) -> None:
    data = hub.files[f"{REPO}/{CONFIG}"].start
    hub.raw[CONFIG] = body(data.replace(b"1", b"2"))
    assert f"{CONFIG} of {REPO} is not the file that the Hub lists" in guarded(pull).message


# Lies about weights


def test_an_index_of_shards_that_are_not_there(hub: hub_server.Hub) -> None:
    """It was left behind: the single file is whole."""
    expected = read_remote(REPO).tensors
    hub.put(
        f"{REPO}/{SAFETENSORS.index}",
        json.dumps({"weight_map": dict.fromkeys(expected, "model-00001-of-00001.safetensors")}).encode(),
    )
    assert read_remote(REPO).tensors == expected


@pytest.mark.parametrize("length", [0, 1, 2**63, 2**64 - 1, 10**9, bounds.LARGEST_HEADERS + 1])
def test_headers_whose_length_lies(hub: hub_server.Hub, length: int) -> None:
    start = length.to_bytes(8, "little") + b"{}"
    hub.files[f"{REPO}/{WEIGHTS}"] = hub_server.File(start, 2**40)
    assert f"its header claims {length} bytes" in guarded(inspect).message


@pytest.mark.parametrize("text", [b"{}", b"[[" * 10**6, b'{"a":[],' * 10**6, b'{"a":{}}'], ids=len)
def test_headers_that_are_none(hub: hub_server.Hub, text: bytes) -> None:
    start = len(text).to_bytes(8, "little") + text
    hub.files[f"{REPO}/{WEIGHTS}"] = hub_server.File(start[:-1] + b"x", len(start))
    guarded(inspect)


@pytest.mark.parametrize(
    "range_", ["bytes 1-99/100", "bytes */100", "", "lines 0-9/10", "bytes 99-0/100", "bytes -5-9/10"]
)
def test_another_range_than_was_asked_for(hub: hub_server.Hub, range_: str) -> None:
    head = f"HTTP/1.1 206 Partial Content\r\nContent-Range: {range_}\r\nContent-Length: 100\r\n\r\n"
    hub.raw[WEIGHTS] = once(head.encode() + b"\0" * 100)
    for action in (inspect, pull):
        assert "another part of model.safetensors" in guarded(action).message or "99-0" in range_


def test_of_weights_only_the_beginning_is_asked_for(hub: hub_server.Hub) -> None:
    assert read_remote(REPO).tensors
    assert [each.get("range") for each in hub.requests(CONFIG)] == [None]
    assert [each["range"][:8] for each in hub.requests(WEIGHTS)] == ["bytes=0-"]


def test_a_server_that_gives_all_instead_of_a_part(hub: hub_server.Hub) -> None:
    hub.ranges = False
    assert read_remote(REPO).tensors and pull()


@pytest.mark.parametrize(
    ("headers", "size"),
    [
        ({"content-range": "bytes 0-9/100", "content-length": "10"}, 100), ({"content-range": "bytes 0-9/*"}, None),
        ({"content-length": "12"}, 12), ({}, None), ({"content-length": "many"}, None),
        ({"content-length": "\u0663"}, None),
        ({"content-length": "9" * 19}, 10**19 - 1), ({"content-length": "9" * 20}, None),
        ({"content-length": "-1"}, None),
    ],
)  # fmt: skip
def test_sizes_that_an_answer_tells(headers: dict[str, str], size: int | None) -> None:
    response = SimpleNamespace(status_code=200, headers=headers, url=SimpleNamespace(host="example.org"))
    assert client.Answer(response, [], 1).file_size == size


def test_an_answer_in_pieces_is_whole(hub: hub_server.Hub) -> None:
    text = json.dumps({"sha": COMMIT, "siblings": []}).encode()
    head = OK + f"Content-Length: {len(text)}\r\n\r\n".encode()

    def answer(send: Send) -> None:
        for piece in (head, text[:9], text[9:20], text[20:]):
            send(piece)
            time.sleep(0.05)

    hub.raw[""] = answer
    assert client.listing(REPO, None)["sha"] == COMMIT


# Waits


@pytest.mark.parametrize("asked", ["1", "600"])
def test_a_wait_that_is_asked_for_is_told(hub: hub_server.Hub, asked: str) -> None:
    hub.faults[""] = [Fault(status=429, headers={"retry-after": asked})]

    class Told(Exception):
        """Nobody waits in a test."""

    def tell(why: str, seconds: float) -> None:
        raise Told(f"{why}: {seconds:.0f}")

    with pytest.raises(Told, match=f"HTTP 429 .*: {asked}$"):
        read_manifest(REPO, None, ONCE, tell)


def test_a_wait_until_a_date_is_told(hub: hub_server.Hub) -> None:
    until = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=300), usegmt=True)
    hub.faults[""] = [Fault(status=429, headers={"retry-after": until})]
    waits: list[float] = []

    class Told(Exception):
        """Nobody waits in a test."""

    def tell(why: str, seconds: float) -> None:
        waits.append(seconds)
        raise Told

    with pytest.raises(Told):
        read_manifest(REPO, None, ONCE, tell)
    assert 200 < waits[0] <= 300


@pytest.mark.parametrize("asked", ["601", "86400", "9" * 300, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_wait_that_is_too_long_is_an_error(hub: hub_server.Hub, asked: str) -> None:
    hub.faults[""] = [Fault(status=503, headers={"retry-after": asked})]
    assert "HTTP 503" in (failure := guarded(pull)).message and "asks to wait" in failure.message


@pytest.mark.parametrize("asked", ["-1", "soon", "1e9", "\u0663", "Wed, 21 Oct 2015 07:28:00 GMT", "0", "0.5"])
def test_a_wait_that_is_none_is_as_short_as_usual(hub: hub_server.Hub, asked: str) -> None:
    line = f"HTTP/1.1 429 x\r\nRetry-After: {asked}\r\nContent-Length: 0\r\n\r\n".encode()
    hub.raw[""] = lambda send: (hub.raw.pop(""), send(line))
    assert read_manifest(REPO, None, ONCE).commit == COMMIT


def test_a_lost_connection_is_told_once_it_took_a_while(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moecli.hub.retry._WORTH_TELLING", 0.2)
    hub.raw[""] = lambda send: (hub.raw.pop(""), time.sleep(1))
    waits: list[str] = []
    read_manifest(REPO, None, ONCE, lambda why, _: waits.append(why))
    assert len(waits) == 1 and "cannot be reached" in waits[0]
