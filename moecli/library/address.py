"""What people paste for a MODEL: addresses of the Hub's pages and files, as the org/name[:GGUF] they mean."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from moecli import settings
from moecli.checkpoint.gguf_names import ENDING
from moecli.errors import ModelNotFound, printable
from moecli.hub import cache as hub_cache

_HOSTS = ("huggingface.co", "hf.co")
_SCHEMES = ("http", "https", "hf", "ssh", "git")
_OF_REVISION = ("tree", "blob", "resolve", "raw", "revision", "commit", "commits", "blame", "edit")
_OTHER_THINGS = {
    "datasets": "a dataset", "spaces": "a space", "kernels": "a kernel", "buckets": "a bucket",
    "collections": "a collection", "papers": "a paper", "docs": "documentation", "blog": "an article",
}  # fmt: skip
_SHOWN = 80


def plain(pasted: str) -> str:
    """`org/name`, `org/name@revision` or `org/name:variant@revision` for an address of a model or a GGUF file in it.

    What is no address as it is, without blanks around.

    ModelNotFound for the address of something else, with the reason.
    """
    text = pasted.strip()
    path = _path(text)
    if path is None:
        return text
    at_hub = path != text
    parts = [unquote(part) for part in path.split("/") if part]
    if parts[:2] == ["api", "models"] or (parts[:1] == ["models"] and len(parts) > 2):
        parts = parts[1 + (parts[0] == "api") :]
    if len(parts) < 2 and not at_hub:
        return text.rstrip("/")
    if parts and parts[0] in _OTHER_THINGS:
        raise ModelNotFound(f"{_shown(text)} is {_OTHER_THINGS[parts[0]]}, no model", "type a model as org/name")
    if len(parts) < 2:
        raise ModelNotFound(f"{_shown(text)} names no model", "a model's address is https://huggingface.co/org/name")
    (organisation, full), rest = parts[:2], parts[2:]
    name, at, revision = full.partition("@")
    name, _, variant = name.removesuffix(".git").partition(":")
    repo = f"{organisation}/{name}"
    if not hub_cache.is_repo(repo):
        raise ModelNotFound(f"{_shown(text)} names no model", "type a model as org/name")
    if rest and not at and path.endswith(ENDING):
        if at_hub and rest[0] in _OF_REVISION and len(rest) > 2:
            revision, rest = rest[1], rest[2:]
        file = "/".join([variant, *rest] if variant else rest)
        return f"{repo}:{file}" + (f"@{revision}" if revision else "")
    if at and (revision == "refs" or not at_hub):  # refs/pr/4, or a branch with a slash in its name
        revision, rest = "/".join([revision, *rest[: 2 if at_hub else None]]), []
    found = revision if at else _revision(rest)
    if found is None and rest and not at_hub and rest[0] not in ("discussions", "settings"):
        raise ModelNotFound(f"{_shown(text)} is no address of a model", f"did you mean {repo}?")
    return repo + (f":{variant}" if variant else "") + (f"@{found}" if found else "")


def _path(text: str) -> str | None:
    """What follows the Hub's host in an address, or the text itself without its ? and #; None for a plain name.

    ModelNotFound for the address of another host.
    """
    if text.startswith("git@") and ":" in text:  # as git clones
        text = "ssh://" + text.replace(":", "/", 1)
    scheme, slashes, rest = text.partition("://")
    if slashes:
        if scheme.lower() not in _SCHEMES:
            raise _elsewhere(text)
        if scheme.lower() == "hf":
            return _short(rest)
        return _after_host(text, rest)
    first, slash, _ = text.partition("/")
    if not slash:
        return None
    host = re.split(r"[:?#]", first.rpartition("@")[2].lower())[0]
    if _is_hub(first) or (text.count("/") > 1 and re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)*\.[a-z]{2,}", host)):
        return _after_host(text, text)
    short = _short(text)
    return short if short != text or short.endswith("/") or short.count("/") > 1 or ":" in short else None


def _after_host(text: str, rest: str) -> str:
    """The path of an address of the Hub, or of the one that HF_ENDPOINT names."""
    host, _, path = rest.partition("/")
    host = re.split(r"[?#]", host)[0].rpartition("@")[2]
    if not _is_hub(host):
        raise _elsewhere(text)
    (own, prefix), path = _endpoint(), _short(path)
    if host.lower() == own and prefix and f"{path}/".startswith(f"{prefix}/"):
        path = path[len(prefix) :]
    return f"/{path}"


def _short(path: str) -> str:
    return re.split(r"[?#]", path)[0]


def _is_hub(host: str) -> bool:
    host = host.rpartition("@")[2].lower()
    name, _, port = host.partition(":")
    return (name.removeprefix("www.") in _HOSTS and port in ("", "80", "443")) or host == (_endpoint()[0] or None)


def _endpoint() -> tuple[str, str]:
    """The host with its port, and the path, of HF_ENDPOINT; empty where there is none that could be meant."""
    try:
        parts = urlsplit(settings.read("HF_ENDPOINT") or "")
    except ValueError:
        return "", ""
    return parts.netloc.rpartition("@")[2].lower(), parts.path.strip("/")


def _revision(rest: list[str]) -> str | None:
    """The branch, tag or commit that the rest of an address names: tree/main, blob/v1/config.json, tree/refs/pr/1."""
    if len(rest) < 2 or rest[0] not in _OF_REVISION:
        return None
    return "/".join(rest[1:4]) if rest[1] == "refs" else rest[1]


def _elsewhere(text: str) -> ModelNotFound:
    hint = "models come from https://huggingface.co/org/name; HF_ENDPOINT names a mirror of it"
    return ModelNotFound(f"{_shown(text)} is no address of the Hub", hint)


def _shown(text: str) -> str:
    """Without what may be secret before its host."""
    return f"'{printable(re.sub(r'//[^/@]*@', '//', text), _SHOWN)}'"
