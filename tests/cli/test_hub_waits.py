"""Ctrl-C in every kind of wait for a Hub, in the real program."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import moecli as package
from tests.support import hub_server
from tests.support.processes import wait_for

REPO = "somebody/some-moe"
TINY = Path(package.__file__).parent / "tiny"


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
        ("pull", "", asks_to_wait),
        ("inspect", "model.safetensors", silent),
        ("pull", "model.safetensors", trickle),
        ("pull", "model.safetensors", asks_to_wait),
    ],
)
def test_ctrl_c_ends_a_wait_at_once(start, hub: hub_server.Hub, verb: str, name: str, answer: Callable) -> None:
    for file in TINY.iterdir():
        hub.put(f"{REPO}/{file.name}", file.read_bytes())
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
