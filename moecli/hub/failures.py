"""What goes wrong between here and the Hub, in words: refusals, lost connections, answers that are none."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult, urlsplit

from moecli.errors import NetworkError, printable
from moecli.hub import environment

_PASSING = (408, 425, 429)
_NEVER = (501, 505, 511)  # of those from 500 on, which pass by themselves otherwise

_WORDS = (  # what each system says of the same
    (r"name or service not known|name resolution|getaddrinfo|nodename", "no network, or nobody has that name"),
    (r"connection refused", "nothing answers at that address"),
    (r"network is unreachable|no route to host", "no network leads there"),
)


class HubBusy(NetworkError):
    """A refusal or a lost connection that may pass by itself; `wait` is what the Hub asks for, in seconds."""

    def __init__(self, message: str, hint: str | None = None, wait: float | None = None) -> None:
        super().__init__(message, hint)
        self.wait = wait


class TooSlow(HubBusy):
    """A connection that brings next to nothing."""


def address(url: str) -> str:
    """What may be shown of an address: neither the user and password before its host nor the query after its path."""
    parts = urlsplit(url)
    return printable(SplitResult(parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "").geturl(), 200)


def reason(error: Exception) -> str:
    """What the system says, in words; else what a library says, which may repeat what a server sent."""
    said = re.sub(r"\[Errno -?\d+\] ", "", str(error))
    for pattern, words in _WORDS:
        if re.search(pattern, said, re.IGNORECASE):
            return words
    return printable(said, 200) or type(error).__name__


def unreachable(endpoint: str, error: Exception) -> HubBusy:
    """No connection, or none that could be understood."""
    hint = "check the network, or name a folder or a model that is on this machine"
    if names := environment.proxies():
        hint = f"check the network and the proxy that {' and '.join(names)} names; or name a model that is here"
    if "CERTIFICATE" in str(error).upper():
        hint = "set SSL_CERT_FILE to the certificates that this network needs"
    return HubBusy(f"the Hub at {address(endpoint)} cannot be reached: {reason(error)}", hint)


def lost(host: str, error: Exception) -> HubBusy:
    """A connection that ended in the middle of an answer."""
    hint = "repeat the command when the network is back: it goes on where it stopped"
    return HubBusy(f"the connection to {host} was lost: {reason(error)}", hint)


def silent(endpoint: str, seconds: float) -> HubBusy:
    return HubBusy(
        f"the Hub at {address(endpoint)} has not begun to answer in {seconds:.0f} s",
        "check the network; HF_HUB_DOWNLOAD_TIMEOUT sets the patience in seconds",
    )


def slow(host: str, size: int, seconds: float) -> TooSlow:
    return TooSlow(
        f"{host} has sent {size:,} bytes in {seconds:.0f} s, which is too slow",
        "check the network; HF_HUB_DOWNLOAD_TIMEOUT sets the patience in seconds",
    )


def no_hub(host: str, what: str) -> NetworkError:
    """An answer that no Hub gives."""
    hint = "is HF_ENDPOINT right, or does this network want a login in the browser?"
    return NetworkError(f"{host} {what}", hint)


def refusal(
    endpoint: str, token: bool, repo: str, revision: str | None, name: str, status: int, headers: Mapping[str, str]
) -> NetworkError:
    """What an answer other than the file means, and what to do; `token` says whether one was sent."""
    code = headers.get("x-error-code", "")
    page = "text/html" in headers.get("content-type", "").lower()
    if code == "GatedRepo" or (status == 403 and not page):
        account = "with the account of your token" if token else "then set HF_TOKEN to a token of that account"
        hint = f"accept them at {address(endpoint)}/{repo}, {account}"
        return NetworkError(f"{repo} is gated: the Hub wants its terms accepted (HTTP {status})", hint)
    if code == "RevisionNotFound" or (code == "EntryNotFound" and not name):  # a ref that the API does not know
        return NetworkError(f"{repo} has no revision '{revision}'", "name a branch, tag or commit of it")
    if code == "EntryNotFound":
        return NetworkError(f"{repo} holds no {name}", "only models in transformers' format can be read")
    if status in (401, 404):
        hint = (
            "check the spelling and the token in HF_TOKEN"
            if token
            else "check the spelling; for a private model set HF_TOKEN"
        )
        return NetworkError(f"the Hub knows no model '{repo}', or it is private (HTTP {status})", hint)
    message = f"the Hub answers HTTP {status} to {repo}/{name}".rstrip("/")
    if status == 407 and (names := environment.proxies()):
        return NetworkError(
            f"the proxy that {' and '.join(names)} names wants a password", "write http://user:password@host"
        )
    if status in _PASSING or (status >= 500 and status not in _NEVER):
        return HubBusy(message, "try again later", _asked_wait(headers))
    return NetworkError(message, "try again later")


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds, from Retry-After (a number, or a date as in RFC 9110) or from the `t` of the Hub's RateLimit header."""
    asked = headers.get("retry-after", "") or "".join(re.findall(r"\bt=([0-9]+)", headers.get("ratelimit", ""))[:1])
    if asked.isascii() and asked.isdigit():
        return float(asked[:12])
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError, OSError):
        return None
