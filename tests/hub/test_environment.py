"""The variables that huggingface_hub and its HTTP library obey, with values that they cannot take."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from moecli import settings
from moecli.errors import MoecliError
from moecli.hub import environment, failures

FOLDER, MISSING, EMPTY, TEXT, BINARY = (
    "{folder}",
    "{folder}/missing",
    "{folder}/empty",
    "{folder}/text",
    "{folder}/binary",
)
TIMEOUTS = ("abc", "-1", "0", "inf", "nan", "1e400", "1.5", "99999999999", "9" * 5000, "1 2", "\x1b[31m")
PROXIES = (
    "foo://127.0.0.1:9",
    "::",
    "http://",
    "http://[::1",
    "http://a b",
    "http://h:99999",
    "http://h:x",
    "http://h:0",
)
MORE_PROXIES = ("socks4://h:1", "http:///x", "http://" + "a" * 300, "http://\u2028", "file:///etc/passwd", "http://%zz")
ENDPOINTS = (
    "hub.example.org",
    "ftp://hub.example.org",
    "http://",
    "https://a b",
    " https://a",
    "https://a/ b",
    "http://[::",
)
MORE_ENDPOINTS = (
    "https://h:x",
    "https://h:99999",
    "https://a?b",
    "https://a#b",
    "https://" + "a" * 300,
    "https://\x1b]0;x",
)
TOKENS = ("hf_ a", "hf_\xe9", "hf_\x1b[31m", "hf_\u200b", "Bearer hf_a", "hf_\ta")
BAD = [
    *(("HF_HUB_DOWNLOAD_TIMEOUT", value) for value in TIMEOUTS),
    *(("HF_HUB_ETAG_TIMEOUT", value) for value in TIMEOUTS),
    *((name, value) for name in ("HTTPS_PROXY", "all_proxy") for value in (*PROXIES, *MORE_PROXIES)),
    *((name, PROXIES[0]) for name in ("https_proxy", "http_proxy", "HTTP_PROXY", "ALL_PROXY")),
    *(("HF_ENDPOINT", value) for value in (*ENDPOINTS, *MORE_ENDPOINTS)),
    *((name, value) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") for value in TOKENS),
    *(("SSL_CERT_FILE", value) for value in (FOLDER, MISSING, EMPTY, TEXT, BINARY, "/dev/null", "x" * 5000)),
    *(("SSL_CERT_DIR", value) for value in (MISSING, EMPTY, f"{FOLDER}:{MISSING}", "x" * 5000)),
    *(("SSLKEYLOGFILE", value) for value in (FOLDER, f"{MISSING}/x", f"{EMPTY}/x")),
    *(("HF_TOKEN_PATH", value) for value in (FOLDER, BINARY, f"{EMPTY}/x", "/dev/null")),
    *((name, value) for name in ("HF_HOME", "HF_HUB_CACHE") for value in (EMPTY, f"{TEXT}/x", "x" * 5000, "/dev/null")),
    ("HF_HOME", "~nobody-of-that-name/x"),
    *(("HF_HUB_OFFLINE", value) for value in ("garbage", "2", "y", "-", "\x1b[31m")),
    ("TRANSFORMERS_OFFLINE", "maybe"),
]  # fmt: skip
GOOD = [
    ("HF_HUB_DOWNLOAD_TIMEOUT", "30"),
    ("HF_HUB_DOWNLOAD_TIMEOUT", ""),
    ("HTTPS_PROXY", "http://me:pass%20word@proxy.example.org:3128"),
    ("HTTPS_PROXY", "proxy.example.org:3128"),
    ("ALL_PROXY", "http://[::1]:3128/"),
    ("ALL_PROXY", ""),
    ("NO_PROXY", "::, foo://, [, *, \x1b"),
    ("HF_ENDPOINT", "https://me:secret@hub.example.org:8443/mirror/"),
    ("HF_ENDPOINT", "http://[::1]:80"),
    ("HF_ENDPOINT", ""),
    ("HF_TOKEN", "hf_abc\n"),
    ("HF_TOKEN", ""),
    ("HF_TOKEN", " \n"),
    ("HF_TOKEN_PATH", MISSING),
    ("HF_HOME", "relative"),
    ("HF_HUB_CACHE", "$HOME/cache"),
    ("HF_HUB_OFFLINE", "FALSE"),
    ("REQUESTS_CA_BUNDLE", MISSING),
]


def put(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, value: str) -> None:
    (folder / "empty").touch()
    (folder / "text").write_text("no certificate")
    (folder / "binary").write_bytes(b"\xff\xfe\x00")
    monkeypatch.setenv(name, value.replace(FOLDER, str(folder)))


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_value_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str) -> None:
    put(monkeypatch, tmp_path, name, value)
    with pytest.raises(MoecliError) as caught:
        environment.examine()
        settings.offline()
    failure = caught.value
    assert failure.message.startswith(f"{name} ") and failure.hint and failure.exit_code in (1, 2)
    assert failure.message.isprintable() and len(failure.message) < 250
    assert "TOKEN" not in name or value not in failure.message or FOLDER in value or value == "/dev/null"


@pytest.mark.parametrize(("name", "value"), GOOD)
def test_a_value_that_can_be_meant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str) -> None:
    put(monkeypatch, tmp_path, name, value)
    environment.examine()
    assert not settings.offline()
    assert value or name not in os.environ  # some libraries take nothing for a value


@pytest.mark.parametrize("name", ["HF_ENDPOINT", "HTTPS_PROXY", "all_proxy"])
@pytest.mark.parametrize("value", ["foo://me:hf_secret@h", "me:hf_secret@h:x", "http://me:hf_secret@h:x"])
def test_no_password_is_shown(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(MoecliError) as caught:
        environment.examine()
    assert "secret" not in caught.value.message


@pytest.mark.skipif(find_spec("socksio") is not None, reason="SOCKS proxies work here")
def test_a_socks_proxy_says_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "SOCKS5h://127.0.0.1:9")
    with pytest.raises(MoecliError, match=r"ALL_PROXY .* package socksio") as caught:
        environment.examine()
    assert caught.value.hint == "pip install socksio"


def test_a_file_with_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "token").write_text("hf_\xe9")
    with pytest.raises(MoecliError, match="no token has"):
        environment.examine()
    monkeypatch.setenv("HF_TOKEN", "hf_abc")  # then nobody reads the file
    environment.examine()


@pytest.mark.slow
def test_a_token_that_another_service_should_give(tmp_path: Path) -> None:
    environment = os.environ | {"HF_OIDC_RESOURCE": "o/m", "HF_ENDPOINT": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "moecli", "inspect", "somebody/something"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert result.returncode == 1 and result.stderr.startswith("error: no token can be had: HF_OIDC_RESOURCE is set")
    assert "unset HF_OIDC_RESOURCE" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_library_says_nothing_itself(tmp_path: Path) -> None:
    """It warns at import and in use, of deprecated variables, of words that are no level, of what it cannot find."""
    loud = {
        "HF_HUB_ENABLE_HF_TRANSFER": "1", "HF_HUB_VERBOSITY": "loud", "HF_DEBUG": "1", "HF_HUB_DISABLE_XET": "maybe",
        "HF_HUB_DOWNLOAD_TIMEOUT": "", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_ETAG_TIMEOUT": "",
        "NO_PROXY": "::, foo://, [", "HF_HUB_DISABLE_PROGRESS_BARS": "x", "HTTP_PROXY": "", "PYTHONWARNINGS": "always",
    }  # fmt: skip
    environment = os.environ | loud | {"HF_HOME": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "moecli", "inspect", "somebody/something"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert result.returncode == 1 and not result.stdout
    lines = [line for line in result.stderr.splitlines() if not line.startswith("hint: ")]
    assert len(lines) == 1 and lines[0].startswith("error: the Hub at http://127.0.0.1:9 cannot be reached")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(-2, "Name or service not known"), "no network, or nobody has that name"),
        (OSError("[Errno 111] Connection refused"), "nothing answers at that address"),
        (OSError(101, "Network is unreachable"), "no network leads there"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (OSError(), "OSError"),
    ],
)
def test_what_the_system_says_of_a_network_is_said_in_words(error, words):
    assert failures.reason(error) == words
