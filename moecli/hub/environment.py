"""Every variable that huggingface_hub and its HTTP library obey, examined before either of them is imported."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from moecli import settings
from moecli.errors import NetworkError, printable

_SCHEMES = ("http", "https", "socks5", "socks5h")
_PROXIES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
_LONGEST_TIMEOUT = 86400
_SHOWN = 80

Problem = tuple[str, str]  # what is wrong with a value, and what to do


def examine() -> None:
    """NetworkError for the first variable whose value those libraries cannot take; an empty one counts as unset."""
    settings.forget_empty((*_CHECKS, *settings.HUB_FOLDERS))
    for name, check in _CHECKS.items():
        value = settings.read(name)
        if value is not None and (found := check(value)) is not None:
            problem, hint = found
            raise NetworkError(f"{name} {problem}", hint)
    settings.hub_cache()
    if settings.read("HF_TOKEN") is None and (found := _token_file(settings.hub_token_file())) is not None:
        name = "HF_TOKEN_PATH" if settings.read("HF_TOKEN_PATH") else "the file of the token"
        raise NetworkError(f"{name} {found[0]}", found[1])


def proxies() -> list[str]:
    """The variables that name a proxy; in either case, the small one first, as the libraries read them."""
    return [name for name in _PROXIES if settings.read(name)]


def _named(value: str) -> str:
    return f"is '{printable(value, _SHOWN)}'"


def _endpoint(value: str) -> Problem | None:
    """An http or https address, perhaps with user and password and a path, that nothing can be misread in."""
    hint = "unset it or write https://..."
    shown = _named(_without_password(value))
    if not _is_address(value, ("http", "https")):
        return f"{shown}, which is no web address", hint
    if "?" in value or "#" in value:
        return f"{shown}, and a Hub's address ends before a ? or a #", hint
    return None


def _proxy(value: str) -> Problem | None:
    address = value if "://" in value else f"http://{value}"
    shown = _named(_without_password(value))
    if not _is_address(address, _SCHEMES):
        return f"{shown}, which is no proxy's address", "unset it or write http://host:port"
    if address.lower().startswith("socks") and find_spec("socksio") is None:
        return f"{shown}, and a SOCKS proxy needs the package socksio", "pip install socksio"
    return None


def _is_address(value: str, schemes: tuple[str, ...]) -> bool:
    """Whether a scheme, a host that the name service can be asked for, and perhaps a port."""
    try:
        parts = urlsplit(value)
        host = parts.hostname or ""
        host.encode("ascii" if ":" in host else "idna")
        good = parts.scheme in schemes and bool(host) and parts.port != 0
    except (ValueError, UnicodeError):
        return False
    return good and value.isprintable() and not re.search(r"[\s<>\"{}|\\^`]", value) and "%" not in host


def _seconds(value: str) -> Problem | None:
    try:
        good = 1 <= int(value) <= _LONGEST_TIMEOUT
    except ValueError:
        good = False
    return None if good else (_named(value), f"it takes whole seconds, 1 to {_LONGEST_TIMEOUT}")


def _token(value: str) -> Problem | None:
    """The text itself is never shown."""
    token = value.replace("\r", "").replace("\n", "").strip()
    if token.isascii() and token.isprintable() and " " not in token:
        return None
    return "holds a character that no token has", "copy the token again: hf_ and letters and digits"


def _token_file(path: Path) -> Problem | None:
    shown, hint = _named(str(path)), "name a file that holds the token, or set HF_TOKEN"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return f"{shown}, which is no file", hint
        with path.open("rb") as file:
            found = _token(file.read(65536).decode("utf-8"))
    except FileNotFoundError:
        return None
    except UnicodeError:
        return f"{shown}, which holds no text", hint
    except OSError as error:
        return f"{shown}, which cannot be read: {error.strerror}", hint
    return found and (f"{shown}, which {found[0]}", found[1])


def _certificates(value: str) -> Problem | None:
    import ssl  # takes a while

    hint = "unset it or name a file of certificates in PEM format"
    try:
        if not stat.S_ISREG(Path(value).stat().st_mode):
            return f"{_named(value)}, which is no file", hint
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=value)
    except ssl.SSLError:
        return f"{_named(value)}, which holds no certificates", hint
    except (OSError, ValueError) as error:
        return f"{_named(value)}, which cannot be read: {getattr(error, 'strerror', None) or error}", hint
    return None


def _folders(value: str) -> Problem | None:
    """Of certificates; several stand between colons."""
    for folder in filter(None, value.split(os.pathsep)):
        try:
            next(Path(folder).iterdir(), None)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            return f"{_named(folder)}, which cannot be read: {reason}", "unset it or name a folder of certificates"
    return None


def _appended(value: str) -> Problem | None:
    try:
        with Path(value).open("ab"):
            return None
    except (OSError, ValueError) as error:
        return f"{_named(value)}, which cannot be written: {getattr(error, 'strerror', None) or error}", "unset it"


def _without_password(value: str) -> str:
    """What may be shown of an address, be it one or not."""
    before, slashes, rest = value.rpartition("://")
    return before + slashes + rest.rpartition("@")[2]


_CHECKS: dict[str, Callable[[str], Problem | None]] = {
    "HF_ENDPOINT": _endpoint,
    "HF_HUB_DOWNLOAD_TIMEOUT": _seconds,
    "HF_HUB_ETAG_TIMEOUT": _seconds,
    **dict.fromkeys(_PROXIES, _proxy),
    "SSL_CERT_FILE": _certificates,
    "SSL_CERT_DIR": _folders,
    "SSLKEYLOGFILE": _appended,
    "HF_TOKEN": _token,
    "HUGGING_FACE_HUB_TOKEN": _token,
}
