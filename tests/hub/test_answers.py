"""One request and its answer: what is asked, how much is read for how long, and which answers are none."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from moecli import __version__
from moecli.errors import NetworkError
from moecli.hub import bounds, client
from moecli.hub.client import Answer
from moecli.hub.failures import HubBusy, TooSlow
from tests.support import hub_server
from tests.support.hub_server import COMMIT, Fault

REPO = "somebody/some-moe"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    with hub_server.serve_library(monkeypatch, timeout=0.5) as running:
        running.put(f"{REPO}/config.json", b"0123456789")
        running.put(f"{REPO}/in/a folder.json", b"{}")
        yield running


def answer(
    chunks: list[tuple[bytes, float]] = (),
    history: list[Mapping[str, str]] = (),
    clock: list[float] | None = None,
    **headers: str,
) -> Answer:
    """Each chunk takes so many seconds to come, on a clock of its own."""

    def raw() -> Iterator[bytes]:
        for chunk, seconds in chunks:
            if clock is not None:
                clock[0] += seconds
            yield chunk

    about = {name.replace("_", "-"): value for name, value in headers.items()}
    response = SimpleNamespace(
        status_code=200, headers=about, url=SimpleNamespace(host="example.org"), iter_raw=raw, close=lambda: None
    )
    return Answer(response, list(history), 10.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_the_hub_s_own_headers_come_before_those_of_a_redirect() -> None:
    history = [{"x-linked-etag": "first"}, {"x-linked-etag": "second", "x-repo-commit": "abc"}]
    found = answer(history=history, x_linked_etag="third", x_other="last")
    assert [found.first(name) for name in ("x-linked-etag", "x-repo-commit", "x-other", "none")] == [
        "first", "abc", "last", "",
    ]  # fmt: skip
    assert found.redirected and not answer().redirected
    assert (found.status, found.host) == (200, "example.org")


@pytest.mark.parametrize(
    ("name", "commit"),
    [
        (COMMIT, COMMIT), ("a" * 64, "a" * 64), ("a" * 65, None), ("", None), ("../x", None), ("caf\xe9", None),
        ("\u0663", None), ("v1", "v1"), ("a b", None),
    ],
)  # fmt: skip
def test_a_commit_is_a_plain_word(name: str, commit: str | None) -> None:
    assert answer(x_repo_commit=name).commit == commit


@pytest.mark.parametrize(
    ("chunks", "whole"),
    [
        ([(b"x", 20)], True), ([(b"x", 20.5)], False), ([(b"x" * 1024 * 21, 20.5)], True),
        ([(b"x" * 20000, 20.5)], False),
        ([(b"x" * 10400, 10.25), (b"x" * 10400, 10.25)], False), ([(b"x" * 10500, 10.25), (b"x" * 10500, 10.25)], True),
        ([(b"x" * 20992, 20.5)], True), ([(b"x" * 20991, 20.5)], False),
        ([(b"x" * 30000, 21), (b"x", 20)], True), ([(b"x" * 30000, 21), (b"x", 21)], False),
        ([(b"x" * 90000, 21), (b"x" * 30000, 21)], True), ([(b"x" * 10, 5)] * 4, True), ([(b"x" * 10, 5)] * 5, False),
    ],
)  # fmt: skip
def test_a_kibibyte_a_second_has_to_come_in_each_window(
    chunks: list[tuple[bytes, float]], whole: bool, clock: list[float]
) -> None:
    """Of two silences, 20 s here. Each window counts for itself."""
    found = answer(chunks, clock=clock)
    if whole:
        assert b"".join(found.chunks()) == b"".join(chunk for chunk, _ in chunks)
    else:
        with pytest.raises(TooSlow, match=r"example.org has sent [0-9,]+ bytes in 2[0-9] s, which is too slow"):
            list(found.chunks())


@pytest.mark.parametrize(
    ("most", "data", "taken"),
    [
        (1, b"a", 1),
        (3, b"abc", 1),
        (4, b"abcd", 2),
        (5, b"abcde", 2),
        (7, b"abcdefg", 3),
        (9, b"abcdefg", 3),
        (0, b"", 1),
    ],
)
def test_no_more_is_read_than_that_takes(most: int, data: bytes, taken: int, clock: list[float]) -> None:
    chunks = [(b"abc", 0.0), (b"de", 0.0), (b"fg", 0.0)]
    took: list[int] = []
    found = answer(chunks, clock=clock)
    every = found.chunks

    def counted() -> Iterator[bytes]:
        for chunk in every():
            took.append(len(chunk))
            yield chunk

    found.chunks = counted  # type: ignore[method-assign]
    assert found.read(most) == data and len(took) == taken


@pytest.mark.parametrize(("seconds", "whole"), [(24.0, True), (24.1, False)])
def test_an_answer_that_is_read_as_a_whole_takes_two_minutes_at_most(
    seconds: float, whole: bool, clock: list[float]
) -> None:
    found = answer([(b"x" * 50_000, seconds)] * 5, clock=clock)
    if whole:
        assert len(found.read(10**9)) == 250_000
    else:
        with pytest.raises(NetworkError, match=r"example.org has sent 250,000 bytes in 120 s") as slow:
            found.read(10**9)
        assert not isinstance(slow.value, TooSlow)  # it would be tried again


def test_a_trickle_read_as_a_whole_is_not_tried_again(clock: list[float]) -> None:
    with pytest.raises(NetworkError) as slow:
        answer([(b"x", 30.0)], clock=clock).read(10)
    assert not isinstance(slow.value, HubBusy) and slow.value.hint


def test_what_is_asked_for_and_by_whom(hub: hub_server.Hub) -> None:
    for range_, asked in ((None, None), ((0, None), "bytes=0-"), ((3, None), "bytes=3-"), ((2, 5), "bytes=2-5")):
        with client.get(REPO, None, "config.json", range_) as found:
            first, last = range_ or (0, None)
            assert found.read(100) == b"0123456789"[first : 10 if last is None else last + 1]
            assert found.status == (206 if range_ else 200) and found.commit == COMMIT and found.file_size == 10
        path, headers = hub.seen[-1]
        sent = {name.lower(): value for name, value in headers.items()}
        assert path == f"/{REPO}/resolve/main/config.json" and sent.get("range") == asked
        assert sent["accept-encoding"] == "identity" and sent["user-agent"] == f"moecli/{__version__}"
        assert "authorization" not in sent
    with client.get(REPO, COMMIT, "in/a folder.json"):
        assert hub.seen[-1][0] == f"/{REPO}/resolve/{COMMIT}/in/a%20folder.json"


@pytest.mark.parametrize(
    ("revision", "path"),
    [
        (None, f"/api/models/{REPO}?blobs=true"), (COMMIT, f"/api/models/{REPO}/revision/{COMMIT}?blobs=true"),
        ("refs/pr/7", f"/api/models/{REPO}/revision/refs%2Fpr%2F7?blobs=true"),
    ],
)  # fmt: skip
def test_where_a_listing_is_asked_for(revision: str | None, path: str, hub: hub_server.Hub) -> None:
    if revision == "refs/pr/7":
        with pytest.raises(NetworkError):  # this small server knows none
            client.listing(REPO, revision)
    else:
        assert client.listing(REPO, revision)["sha"] == COMMIT
    assert hub.seen[-1][0] == path


def test_a_listing_that_is_too_long_or_none(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(hub_listing(hub))
    monkeypatch.setattr(bounds, "LARGEST_LISTING", size)
    assert client.listing(REPO, None)["sha"] == COMMIT
    monkeypatch.setattr(bounds, "LARGEST_LISTING", size - 1)
    with pytest.raises(NetworkError) as long:
        client.listing(REPO, None)
    what = f"what the server at {hub.url} says of {REPO}"
    assert long.value.message == f"{what} is longer than {size - 1:,} bytes, which cannot be right"
    monkeypatch.setattr(bounds, "LARGEST_LISTING", 2**20)
    hub.raw[""] = lambda send: send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")
    with pytest.raises(NetworkError) as other:
        client.listing(REPO, None)
    assert other.value.message == f"{what} is not the language of the Hub"
    assert other.value.hint == "is HF_ENDPOINT right?"


def hub_listing(hub: hub_server.Hub) -> bytes:
    import urllib.request

    with urllib.request.urlopen(f"{hub.url}/api/models/{REPO}?blobs=true") as found:
        return found.read()


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, None), ({"content-encoding": "identity"}, None), ({"content-encoding": " Identity "}, None),
        ({"content-encoding": ""}, None), ({"content-encoding": "gzip"}, "in a compressed form that was not asked for"),
        ({"content-type": "text/plain"}, None), ({"content-type": "Text/HTML; charset=x"}, "with a web page"),
        ({"content-type": "application/json", "content-encoding": "br"}, "in a compressed form"),
    ],
)  # fmt: skip
def test_a_body_that_is_not_what_was_asked_for(headers: dict[str, str], words: str | None) -> None:
    found = answer(**{name.replace("-", "_"): value for name, value in headers.items()})
    if words is None:
        client._check(found)
    else:
        with pytest.raises(NetworkError, match=f"example.org answers {words}"):
            client._check(found)


@pytest.mark.parametrize(
    ("range_", "first"),
    [
        ("bytes 0-9/10", 0), ("bytes 17-20/100", 17), ("bytes 17-", 17), ("bytes */100", None), ("", None),
        ("bytes=0-9", None), ("lines 0-9", None), ("bytes " + "9" * 18 + "-", 10**18 - 1),
        ("bytes " + "9" * 19 + "-", None),
        ("bytes \u0663-9", None),
    ],
)  # fmt: skip
def test_the_first_byte_of_a_part(range_: str, first: int | None) -> None:
    assert client._first_byte(answer(content_range=range_)) == first


def test_a_body_is_closed_however_the_block_ends(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Answer] = []
    close = Answer.close
    monkeypatch.setattr(Answer, "close", lambda self: (closed.append(self), close(self)))
    with client.get(REPO, None, "config.json"):
        assert not closed
    assert len(closed) == 1
    with pytest.raises(ValueError, match="enough"), client.get(REPO, None, "config.json"):
        raise ValueError("enough")
    hub.raw["config.json"] = lambda send: send(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
    with pytest.raises(NetworkError), client.get(REPO, None, "config.json"):
        raise AssertionError("a web page")
    assert len(closed) == 3


@pytest.mark.parametrize("status", [200, 206, 404, 503])
def test_only_what_may_be_the_file_is_looked_at(status: int, hub: hub_server.Hub) -> None:
    """A web page that says no is left to whoever asks."""
    page = f"HTTP/1.1 {status} x\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n".encode()
    hub.raw["config.json"] = lambda send: send(page)
    if status < 300:
        with pytest.raises(NetworkError, match="with a web page"), client.get(REPO, None, "config.json"):
            pass
    else:
        with client.get(REPO, None, "config.json") as found:
            assert found.status == status


def test_a_part_that_nobody_asked_for_is_refused(hub: hub_server.Hub) -> None:
    part = b"HTTP/1.1 206 x\r\nContent-Range: bytes 3-9/10\r\nContent-Length: 7\r\n\r\n3456789"
    hub.raw["config.json"] = lambda send: send(part)
    with client.get(REPO, None, "config.json", (3, 9)) as found:
        assert found.read(100) == b"3456789"
    for range_ in (None, (0, None), (4, 9)):
        with pytest.raises(NetworkError, match=r"answers another part of config.json than was asked for"):
            client.get(REPO, None, "config.json", range_).__enter__()


def test_patience_is_three_silences(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(client, "within", lambda seconds, action, discard: asked.append(seconds))
    with (
        pytest.raises(HubBusy, match=f"the Hub at {hub.url} has not begun to answer in 2 s"),
        client.get(REPO, None, "x"),
    ):
        pass
    assert asked == [1.5]


@pytest.mark.parametrize("count", [bounds.MOST_REDIRECTS, bounds.MOST_REDIRECTS + 1])
def test_as_many_redirects_as_are_followed(count: int, hub: hub_server.Hub) -> None:
    target = f"/{REPO}/resolve/main/config.json"
    hub.faults["config.json"] = [Fault(status=302, headers={"location": target})] * count
    if count <= bounds.MOST_REDIRECTS:
        with client.get(REPO, None, "config.json") as found:
            assert found.read(100) == b"0123456789" and found.redirected
    else:
        with pytest.raises(NetworkError, match="redirects without end"), client.get(REPO, None, "config.json"):
            pass
    assert len(hub.seen) == min(count, bounds.MOST_REDIRECTS) + 1


@pytest.mark.parametrize(
    ("spelled", "address"),
    [
        ("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("[::1]", "::1"), ("::1", "::1"),
        ("fe80::1%2", "fe80::1"),
        ("0xA9FEA9FE", "169.254.169.254"), ("127.1", "127.0.0.1"), ("::ffff:10.0.0.1", "10.0.0.1"),
        ("example.org", None),
        ("", None), ("a" * 300, None), ("256.1.1.1.1", None),
    ],
)  # fmt: skip
def test_a_host_that_is_a_number(spelled: str, address: str | None) -> None:
    found = client._numeric(spelled)
    assert (found and str(found)) == address


@pytest.mark.parametrize("host", ["cdn.example.org", "other.example.org"])
def test_only_the_connection_to_the_target_is_judged(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it a proxy may be connected to."""

    class Connection:
        closed = 0

        def get_extra_info(self, name: str) -> tuple[str, int]:
            assert name == "server_addr"
            return "127.0.0.1", 443

        def close(self) -> None:
            self.closed += 1

    see, connection = client._watch("huggingface.co", SimpleNamespace(raw_host=b"cdn.example.org")), Connection()
    monkeypatch.setattr(
        client, "_addresses", lambda name: [client._numeric("10.0.0.1" if name == "huggingface.co" else name)]
    )
    done: Any = {"return_value": connection}
    see("connection.connect_tcp.complete", done)
    see("connection.connect_tcp.started", {"host": host})
    if host == "cdn.example.org":
        with pytest.raises(
            NetworkError, match=r"huggingface.co redirects to 127.0.0.1, which is no host of the network"
        ):
            see("connection.connect_tcp.complete", done)
        assert connection.closed == 1
        see("connection.connect_tcp.started", {"host": "proxy.example.org"})
    see("connection.connect_tcp.complete", done)
    see("http11.send_request_headers.started", {})
    assert connection.closed == (host == "cdn.example.org")


@pytest.mark.parametrize("variable", ["HF_OIDC_RESOURCE", "HF_TOKEN_PATH"])
@pytest.mark.parametrize(
    "error", [ValueError("a reason"), OSError("a reason"), errors.LocalTokenNotFoundError("a reason")]
)
def test_a_token_that_cannot_be_had(error: Exception, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def get_token() -> str:
        raise error

    monkeypatch.setattr(client.library(), "get_token", get_token)
    if variable == "HF_OIDC_RESOURCE":
        monkeypatch.setenv(variable, "x")
    with pytest.raises(NetworkError) as refused:
        client._token()
    assert refused.value.message == "no token can be had: a reason"
    assert refused.value.hint == f"set HF_TOKEN to a token, and unset {variable}"
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    assert client._token() is None


def test_the_library_is_loaded_in_silence_and_logs_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it fails; who is to look at what is named."""
    for name in (*client.environment.proxies(), "NO_PROXY", "no_proxy", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    load = client.library.__wrapped__
    logger = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler()])
    before = logging.root.manager.disable
    assert load() is huggingface_hub and [type(each) for each in logger.handlers] == [logging.NullHandler]
    for names, hint in (({}, None), ({"NO_PROXY": "a", "HTTPS_PROXY": "http://p:1"}, "look at HTTPS_PROXY, NO_PROXY")):
        for name, value in names.items():
            monkeypatch.setenv(name, value)

        def failing() -> None:
            assert logging.root.manager.disable == logging.CRITICAL
            raise ValueError("no such thing")

        monkeypatch.setattr(huggingface_hub, "get_session", failing)
        with pytest.raises(NetworkError) as refused:
            load()
        assert (refused.value.message, refused.value.hint) == ("no connection can be prepared: no such thing", hint)
        assert logging.root.manager.disable == before


def test_what_the_transport_raises_is_known() -> None:
    """Whichever HTTP library is under huggingface_hub."""
    found = client._transport_failures(KeyError)
    assert OSError in found and UnicodeError in found and KeyError in found
    assert not any(issubclass(each, BaseException) and not issubclass(each, Exception) for each in found)
    names = {each.__name__ for each in found}
    assert "InvalidURL" in names and "HTTPError" in names
    raised = set(client._library_failures())
    assert {errors.HfHubHTTPError, errors.LocalTokenNotFoundError} <= raised


def test_what_leads_nowhere_and_what_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    for target, words in (
        ("file", "redirects to a 'file' address"),
        ("x" * 30, f"redirects to a '{'x' * 20}' address"),
    ):
        with pytest.raises(NetworkError, match=f"hub.example.org {words}"):
            client._check_redirect("hub.example.org", SimpleNamespace(scheme=target, host="hub.example.org"))
    monkeypatch.setattr(client, "_addresses", lambda host: pytest.fail("looked up"))
    client._check_redirect("hub.example.org", SimpleNamespace(scheme="http", host="hub.example.org"))


def test_offline_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for ask in (lambda: client.listing(REPO, None), lambda: client.get(REPO, None, "x").__enter__()):
        with pytest.raises(NetworkError) as refused:
            ask()
        assert refused.value.message == f"'{REPO}' is on the Hub, and the network is not to be used"
        assert refused.value.hint == "unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE)"
