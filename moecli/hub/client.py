"""One request to the Hub through huggingface_hub's own session: address, token, redirects and bounds in one place."""

from __future__ import annotations

import importlib
import ipaddress
import logging
import re
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import quote

from moecli import __version__, settings
from moecli.errors import NetworkError, json_object
from moecli.hub import bounds, environment, failures
from moecli.hub.background import within

_LOG = logging.getLogger(__name__)
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Answer:
    """An open answer of the Hub, or of the host it redirects to; `history` are the headers before that."""

    def __init__(self, response: Any, history: list[Mapping[str, str]], silence: float) -> None:
        self._response = response
        self._history = history
        self._window = bounds.WINDOW * silence
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.redirected = bool(history)
        self.host: str = response.url.host

    def first(self, header: str) -> str:
        """A header of the Hub's own answer, before any redirect."""
        return next((headers[header] for headers in (*self._history, self.headers) if header in headers), "")

    @property
    def commit(self) -> str | None:
        """The commit the Hub resolved the revision to."""
        name = self.first("x-repo-commit")
        return name if name.isalnum() and name.isascii() and len(name) <= 64 else None

    @property
    def file_size(self) -> int | None:
        """The size of the whole file, where the answer tells it."""
        total = self.headers.get("content-range", "").rpartition("/")[2] or self.headers.get("content-length", "")
        return int(total) if total.isascii() and total.isdigit() and len(total) < 20 else None

    def chunks(self) -> Iterator[bytes]:
        """The body as it arrives, never decompressed. HubBusy when the connection is lost, silent or too slow."""
        began, size = time.monotonic(), 0
        try:
            for chunk in self._response.iter_raw():
                yield chunk
                size += len(chunk)
                if (seconds := time.monotonic() - began) > self._window:
                    if size < bounds.SLOWEST * seconds:
                        raise failures.slow(self.host, size, seconds)
                    began, size = time.monotonic(), 0
        except _transport_failures() as error:
            raise failures.lost(self.host, error) from error

    def read(self, most: int) -> bytes:
        """The first `most` bytes of the body, and no more chunks than that takes. NetworkError if it takes too long."""
        began, data = time.monotonic(), bytearray()
        try:
            for chunk in self.chunks():
                data += chunk
                if len(data) >= most:
                    break
                if (seconds := time.monotonic() - began) > bounds.LONGEST_ANSWER:
                    raise failures.slow(self.host, len(data), seconds)
        except failures.TooSlow as error:
            raise NetworkError(error.message, error.hint) from error
        del data[most:]
        return bytes(data)

    def close(self) -> None:
        self._response.close()


@contextmanager
def get(repo: str, revision: str | None, name: str, range_: tuple[int, int | None] | None = None) -> Iterator[Answer]:
    """Ask for one file of a repository; `range_` is its first and last byte. The status is the caller's to judge.

    What is no answer to that question is refused: another range, a web page, a compressed body.
    """
    _check_allowed(repo)
    hub = library()
    url = hub.hf_hub_url(repo, name, revision=revision)
    first, last = range_ or (0, None)
    asked = {"range": f"bytes={first}-{'' if last is None else last}"} if range_ else {}
    with _open(url, asked) as answer:
        if answer.status == 206 and not (range_ and _first_byte(answer) == first):
            raise failures.no_hub(answer.host, f"answers another part of {name} than was asked for")
        yield answer


def listing(repo: str, revision: str | None) -> dict[str, Any]:
    """What the Hub says of a model and of its files, as it says it."""
    _check_allowed(repo)
    endpoint = _endpoint()
    path = f"{endpoint}/api/models/{repo}" + ("" if revision is None else f"/revision/{quote(revision, safe='')}")
    with _open(f"{path}?blobs=true", {}) as answer:
        if answer.status != 200:
            raise refusal(answer, repo, revision, "")
        data = answer.read(bounds.LARGEST_LISTING + 1)
    what = f"what the server at {failures.address(endpoint)} says of {repo}"
    if len(data) > bounds.LARGEST_LISTING:
        raise NetworkError(f"{what} is longer than {bounds.LARGEST_LISTING:,} bytes, which cannot be right")
    bounds.check_values(data, what)
    problem = NetworkError(f"{what} is not the language of the Hub", "is HF_ENDPOINT right?")
    return json_object(data, lambda _: problem)


def _check_allowed(repo: str) -> None:
    if settings.offline():
        hint = "unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE)"
        raise NetworkError(f"'{repo}' is on the Hub, and the network is not to be used", hint)


def refusal(answer: Answer, repo: str, revision: str | None, name: str) -> NetworkError:
    """What an answer other than the file means."""
    sent = _token() is not None
    return failures.refusal(_endpoint(), sent, repo, revision, name, answer.status, answer.headers)


@cache
def library() -> Any:
    """huggingface_hub, imported without a word on stderr: whatever it would warn about has been examined."""
    environment.examine()
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hub = importlib.import_module("huggingface_hub")
            importlib.import_module("huggingface_hub.file_download")
            try:
                hub.get_session()
            except _transport_failures(ValueError, ImportError) as error:
                names = [*environment.proxies(), *filter(settings.read, ("NO_PROXY", "no_proxy", "SSL_CERT_FILE"))]
                hint = f"look at {', '.join(names)}" if names else None
                raise NetworkError(f"no connection can be prepared: {failures.reason(error)}", hint) from error
    finally:
        logging.disable(before)
    logging.getLogger("huggingface_hub").handlers[:] = [logging.NullHandler()]
    return hub


def _endpoint() -> str:
    library()
    from huggingface_hub import constants

    return constants.ENDPOINT


def _token() -> str | None:
    """The token to send. NetworkError where one is configured and cannot be had."""
    from huggingface_hub import constants

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    try:
        token: str | None = library().get_token()
    except _transport_failures(ValueError, *_library_failures()) as error:
        names = "HF_OIDC_RESOURCE" if settings.read("HF_OIDC_RESOURCE") else "HF_TOKEN_PATH"
        hint = f"set HF_TOKEN to a token, and unset {names}"
        raise NetworkError(f"no token can be had: {failures.reason(error)}", hint) from error
    return token


@contextmanager
def _open(url: str, headers: Mapping[str, str]) -> Iterator[Answer]:
    """The answer's headers are complete when the block begins, or HubBusy says why not in bounded time."""
    library()
    from huggingface_hub import constants

    silence, endpoint = constants.HF_HUB_DOWNLOAD_TIMEOUT, constants.ENDPOINT
    began, patience = time.monotonic(), bounds.BEGIN * silence
    answer = within(patience, lambda: _follow(url, headers, silence), Answer.close)
    if answer is None:
        raise failures.silent(endpoint, patience)
    try:
        seconds, shown = time.monotonic() - began, failures.address(url)
        asked = headers.get("range", "bytes=None").removeprefix("bytes=")
        _LOG.debug("GET %s range=%s: %d from %s in %.3f s", shown, asked, answer.status, answer.host, seconds)
        if answer.status in (200, 206):
            _check(answer)
        yield answer
    finally:
        answer.close()


def _follow(url: str, headers: Mapping[str, str], silence: float) -> Answer:
    """Send, and go after redirects by hand: the HTTP library would read the body of each to its end.

    The token goes to the first host alone.
    """
    session, token = library().get_session(), _token()
    about = {"accept-encoding": "identity", "user-agent": f"moecli/{__version__}", **headers}
    about |= {"authorization": f"Bearer {token}"} if token else {}
    history: list[Mapping[str, str]] = []
    try:
        request = session.build_request("GET", url, headers=about, timeout=silence)
        home = request.url.host
        while True:
            response = session.send(request, stream=True, follow_redirects=False)
            if response.next_request is None:
                return Answer(response, history, silence)
            response.close()
            history.append(response.headers)
            request = response.next_request
            if len(history) > bounds.MOST_REDIRECTS:
                raise failures.no_hub(home, "redirects without end")
            _check_redirect(home, request.url)
            if request.url.host != home:
                request.headers.pop("authorization", None)
                request.extensions["trace"] = _watch(home, request.url)
    except _transport_failures() as error:
        _LOG.debug("GET %s fails: %s", failures.address(url), type(error).__name__)
        raise failures.unreachable(_endpoint(), error) from error


def _check_redirect(home: str, target: Any) -> None:
    """No server may send this program into this machine, or to the address at which clouds tell their secrets."""
    if target.scheme not in ("http", "https"):
        raise failures.no_hub(home, f"redirects to a '{target.scheme[:20]}' address")
    if target.host == home:
        return
    for each in _addresses(target.host):
        _check_address(home, each)


def _check_address(home: str, found: _Address) -> None:
    inside = found.is_loopback and any(each.is_loopback for each in _addresses(home))
    if found.is_link_local or found.is_unspecified or (found.is_loopback and not inside):
        raise failures.no_hub(home, f"redirects to {found}, which is no host of the network")


def _watch(home: str, target: Any) -> Callable[[str, Mapping[str, Any]], None]:
    """Looks at the address that was connected to, before anything is sent: a name may mean another one by then.

    httpcore tells of its events through the extension "trace"; the address of a proxy is not ours to judge.
    """
    ours = False

    def see(event: str, about: Mapping[str, Any]) -> None:
        nonlocal ours
        if event == "connection.connect_tcp.started":
            ours = about["host"] == target.raw_host.decode("ascii")
        elif event == "connection.connect_tcp.complete" and ours:
            connection = about["return_value"]
            try:
                for each in _addresses(connection.get_extra_info("server_addr")[0]):
                    _check_address(home, each)
            except NetworkError:
                connection.close()
                raise

    return see


def _addresses(host: str) -> list[_Address]:
    """What a host is, spelled as a number or a name that the system knows; none where only a proxy may know it."""
    if (numeric := _numeric(host)) is not None:
        return [numeric]
    if environment.proxies():
        return []
    try:
        found = {str(place[0]) for *_, place in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):  # whoever connects will say so
        return []
    return [each for each in map(_numeric, found) if each is not None]


def _numeric(host: str) -> _Address | None:
    """The address a host is spelled as, also where the system alone takes it for one (0xA9FEA9FE)."""
    if host == "localhost":
        return ipaddress.ip_address("127.0.0.1")
    try:
        found = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        try:
            return ipaddress.ip_address(socket.inet_aton(host))
        except (OSError, ValueError):
            return None
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found


def _check(answer: Answer) -> None:
    """Whether the body is what was asked for, as far as the headers tell."""
    encoding = answer.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise failures.no_hub(answer.host, "answers in a compressed form that was not asked for")
    if answer.headers.get("content-type", "").lower().startswith("text/html"):
        raise failures.no_hub(answer.host, "answers with a web page")


def _first_byte(answer: Answer) -> int | None:
    match = re.match(r"bytes ([0-9]{1,18})-", answer.headers.get("content-range", ""))
    return int(match[1]) if match else None


def _library_failures() -> Iterator[type[Exception]]:
    """What huggingface_hub itself raises."""
    from huggingface_hub import errors

    return (each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception))


def _transport_failures(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What the HTTP library under huggingface_hub raises: its name changes, that Hub errors derive from it does not."""
    from huggingface_hub.errors import HfHubHTTPError

    bases = tuple(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))
    libraries = (importlib.import_module(base.__module__.partition(".")[0]) for base in bases)
    invalid = tuple(library.InvalidURL for library in libraries if hasattr(library, "InvalidURL"))
    return (*bases, *invalid, OSError, UnicodeError, *more)
