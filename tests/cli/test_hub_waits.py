"""Ctrl-C in every kind of wait for a Hub, in the real program."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from moecli.model import catalog
from tests.support import headers, hub_server
from tests.support.processes import wait_for

REPO = "somebody/some-moe"


def silent(send: hub_server.Send) -> None:
    time.sleep(60)


def trickle(send: hub_server.Send) -> None:
    send(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        send(b" ")
        time.sleep(0.2)


def asks_to_wait(send: hub_server.Send) -> None:
    send(b"HTTP/1.1 429 x\r\nRetry-After: 300\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize(
    ("verb", "name", "answer"),
    [
        ("pull", "", silent),
        ("pull", "", trickle),
        ("pull", "", asks_to_wait),
        ("inspect", "config.json", silent),
        ("inspect", "model-00001-of-00002.safetensors", silent),
        ("pull", "model-00002-of-00002.safetensors", trickle),
        ("pull", "model-00002-of-00002.safetensors", asks_to_wait),
    ],
)
def test_ctrl_c_ends_a_wait_at_once(start, hub: hub_server.Hub, verb: str, name: str, answer: Callable) -> None:
    hub.add(REPO, catalog.find("mixtral").config(), *headers.split(headers.plain(headers.mixtral()), 2))
    for path in [path for path in hub.files if path.endswith(".safetensors")]:
        hub.sizes[path.rpartition("/")[2]] = 1000  # so that there is room for it
    asked = []
    hub.raw[name] = lambda send: (asked.append(name), answer(send))
    process = start(verb, REPO, *(["--yes"] if verb == "pull" else []))
    wait_for(lambda: asked or process.poll() is not None)
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=20)
    assert time.monotonic() - began < 1.5 and process.returncode == 130, shown
    assert "Traceback" not in shown and "Exception" not in shown
    if answer is asks_to_wait:
        assert "HTTP 429" in shown and "next attempt in 300 s" in shown
