"""A server that is killed and comes back with its session: what was read is not read again; and steps are shared."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.server import Server, said, serving

pytestmark = pytest.mark.slow
HISTORY = "The sea was calm and the ship was far away, and the captain slept. " * 40


def complete(server: Server, prompt: str) -> str:
    body = {"model": "tiny", "prompt": prompt, "seed": 3, "temperature": 0.9, "max_tokens": 20}
    return str(server.post("/v1/completions", body).json()["choices"][0]["text"])


def test_a_restart_feeds_only_what_is_new(tmp_path: Path) -> None:
    options = ("tiny", "--ctx", "1024", "--session", str(tmp_path / "session"))
    with serving(tmp_path, *options) as server:
        first = complete(server, HISTORY)
        assert first == said(HISTORY, 20, 3, temperature=0.9)
        server.process.send_signal(signal.SIGKILL)
    following = f"{HISTORY}{first} Then"
    with serving(tmp_path, *options) as server:
        assert complete(server, following) == said(following, 20, 3, temperature=0.9)
        assert server.metric("cached_tokens_total") >= 768 and server.metric("prompt_tokens_total") < 256
    assert (tmp_path / "stderr").read_text().count("warning") == 0


def test_four_clients_share_their_steps(tmp_path: Path) -> None:
    """Steps, not seconds: each reads every weight once for all who are there."""
    from concurrent.futures import ThreadPoolExecutor

    with serving(tmp_path, "tiny", "--ctx", "1024") as server:
        complete(server, "The sea")
        before = [server.metric(name) for name in ("decode_steps_total", "tokens_total")]
        bodies = [{"model": "tiny", "prompt": f"The sea {n}", "seed": n, "max_tokens": 200} for n in range(4)]
        with ThreadPoolExecutor(4) as clients:
            answers = list(clients.map(lambda body: server.post("/v1/completions", body).json(), bodies))
        steps, tokens = (
            server.metric(name) - old for name, old in zip(("decode_steps_total", "tokens_total"), before, strict=True)
        )
        assert tokens == sum(each["usage"]["completion_tokens"] for each in answers) >= 600
        assert 2 * steps < tokens
