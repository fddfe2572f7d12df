"""One request to the Hub through huggingface_hub's own session: address, token, timeouts, and what a refusal means."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import SplitResult, urlsplit

from moecli import __version__, settings
from moecli.errors import NetworkError

_HUB = "https://huggingface.co"
_LOG = logging.getLogger(__name__)
_PASSING = (408, 425, 429, 500, 502, 503, 504)


class HubBusy(NetworkError):
    """A refusal or a lost connection that may pass by itself; `wait` is what the Hub asks for, in seconds."""

    def __init__(self, message: str, hint: str | None = None, wait: float | None = None) -> None:
        super().__init__(message, hint)
        self.wait = wait


class Answer:
    """An open answer of the Hub, or of the host it redirects to."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.redirected = bool(response.history)

    def first(self, header: str) -> str:
        """A header of the Hub's own answer, before any redirect."""
        responses = [*self._response.history, self._response]
        return next((response.headers[header] for response in responses if header in response.headers), "")

    @property
    def commit(self) -> str | None:
        """The commit the Hub resolved the revision to."""
        name = self.first("x-repo-commit")
        return name if name.isalnum() and name.isascii() and len(name) <= 64 else None

    @property
    def file_size(self) -> int | None:
        """The size of the whole file, where the answer tells it."""
        if self.headers.get("content-encoding", "identity") != "identity":
            return None
        total = self.headers.get("content-range", "").rpartition("/")[2] or self.headers.get("content-length", "")
        return int(total) if total.isascii() and total.isdigit() else None

    def chunks(self) -> Iterator[bytes]:
        """The body as it arrives. HubBusy when the connection is lost or silent for too long."""
        try:
            yield from self._response.iter_bytes()
        except transport_failures() as error:
            host, reason = self._response.url.host, str(error) or type(error).__name__
            hint = "repeat the command when the network is back: it goes on where it stopped"
            raise HubBusy(f"the connection to {host} was lost: {reason}", hint) from error


@contextmanager
def get(repo: str, revision: str | None, name: str, range_: str | None = None) -> Iterator[Answer]:
    """Ask for one file of a repository; `range_` as in "0-99". The status is the caller's to judge.

    The token goes to the Hub alone: the session drops it when it follows a redirect to another host.
    """
    from huggingface_hub import constants, get_session, get_token, hf_hub_url

    token = get_token()
    headers = {"accept-encoding": "identity", "user-agent": f"moecli/{__version__}"}
    headers |= {"range": f"bytes={range_}"} if range_ else {}
    headers |= {"authorization": f"Bearer {token}"} if token else {}
    with ExitStack() as stack:
        try:
            url = hf_hub_url(repo, name, revision=revision)
            began = time.perf_counter()
            request = get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            response = stack.enter_context(request)
        except transport_failures() as error:
            _LOG.debug("GET %s fails: %s", address(url), type(error).__name__)
            raise unreachable(error) from error
        seconds, host = time.perf_counter() - began, response.url.host
        _LOG.debug("GET %s range=%s: %d from %s in %.3f s", address(url), range_, response.status_code, host, seconds)
        yield Answer(response)


def address(url: str) -> str:
    """What may be shown of an address: neither the user and password before its host nor the query after its path."""
    parts = urlsplit(url)
    return SplitResult(parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "").geturl()


def check_endpoint() -> None:
    """Before huggingface_hub is imported, which already takes the address apart."""
    endpoint = settings.read("HF_ENDPOINT") or _HUB
    try:
        parts = urlsplit(endpoint)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise NetworkError(
            f"HF_ENDPOINT is '{endpoint[:80]}', which is no web address", "unset it or write https://..."
        )


def transport_failures() -> tuple[type[Exception], ...]:
    """What the HTTP library under huggingface_hub raises: its name changes, that Hub errors derive from it does not."""
    from huggingface_hub.errors import HfHubHTTPError

    bases = tuple(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))
    return (*bases, UnicodeError)


def unreachable(error: Exception) -> HubBusy:
    from huggingface_hub import constants

    return HubBusy(
        f"the Hub at {address(constants.ENDPOINT)} cannot be reached: {str(error) or type(error).__name__}",
        "check the network, or name a folder or a model that is on this machine",
    )


def refusal(repo: str, revision: str | None, name: str, status: int, headers: Mapping[str, str]) -> NetworkError:
    """What an answer other than the file means, and what to do."""
    from huggingface_hub import constants, get_token

    code = headers.get("x-error-code", "")
    if code == "GatedRepo" or status == 403:
        account = "with the account of your token" if get_token() else "then set HF_TOKEN to a token of that account"
        hint = f"accept them at {address(constants.ENDPOINT)}/{repo}, {account}"
        return NetworkError(f"{repo} is gated: the Hub wants its terms accepted (HTTP {status})", hint)
    if code == "RevisionNotFound":
        return NetworkError(f"{repo} has no revision '{revision}'", "name a branch, tag or commit of it")
    if code == "EntryNotFound":
        return NetworkError(f"{repo} holds no {name}", "only models in transformers' format can be read")
    if status in (401, 404):
        hint = "check the spelling; for a private model set HF_TOKEN"
        return NetworkError(f"the Hub knows no model '{repo}', or it is private (HTTP {status})", hint)
    message = f"the Hub answers HTTP {status} to {repo}/{name}".rstrip("/")
    if status in _PASSING:
        return HubBusy(message, "try again later", _asked_wait(headers))
    return NetworkError(message, "try again later")


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds, from Retry-After or from the `t` of the Hub's RateLimit header."""
    asked = headers.get("retry-after", "") or "".join(re.findall(r"\bt=([0-9]+)", headers.get("ratelimit", ""))[:1])
    return float(asked) if asked.isascii() and asked.isdigit() and len(asked) < 6 else None


def take(chunks: Iterable[bytes], size: int) -> bytes:
    """The first `size` bytes, and no more chunks than that takes."""
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) >= size:
            break
    return bytes(data[:size])
