"""A server among clients that come together, leave early, or send what nobody should; and its end."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from moecli.errors import MoecliError
from moecli.planning.placement import fit
from moecli.serve.server import ServerOptions, listen
from tests.support.processes import wait_for
from tests.support.server import TINY, Server, said, serving
from tests.support.stores import packed

pytestmark = pytest.mark.slow
ENDLESS = {"temperature": 0, "repeat_penalty": 1}  # of "The sea": it repeats itself


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("serve"), "--ctx", "8192") as running:
        yield running


def complete(server: Server, prompt: str, seed: int = 0, **more: object) -> str:
    body = {"model": "tiny", "prompt": prompt, "seed": seed, "temperature": 0.9, "max_tokens": 20} | more
    answer = server.post("/v1/completions", body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def test_eight_clients_get_what_each_gets_alone(server: Server) -> None:
    """Long and short prompts, some with a common beginning, sampled."""
    prompts = [("The sea was calm and the ship was far away. " * (1 + 9 * (n % 3)))[: 400 - 7 * n] for n in range(8)]
    alone = [said(prompt, 20, seed, temperature=0.9) for seed, prompt in enumerate(prompts)]
    with ThreadPoolExecutor(8) as clients:
        together = list(clients.map(complete, [server] * 8, prompts, range(8)))
    assert together == alone and len(set(together)) == 8
    assert server.metric("decode_steps_total") < server.metric("tokens_total")  # some were made side by side


def test_a_prompt_that_begins_like_an_earlier_one_reads_only_what_is_new(server: Server) -> None:
    history = "The sea was calm and the ship was far away, and the captain slept. " * 40
    first = complete(server, history)
    cached = server.metric("cached_tokens_total")
    following = f"{history}{first} Then the wind came."
    assert complete(server, following, 5) == said(following, 20, 5, temperature=0.9)
    reused = server.metric("cached_tokens_total") - cached
    assert reused and reused % 128 == 0
    assert complete(server, history) == first == said(history, 20, 0, temperature=0.9)


def test_a_client_that_leaves_frees_its_place(server: Server) -> None:
    before = server.metric("abandoned_total")
    body = {"model": "tiny", "prompt": "The sea", "stream": True, "options": ENDLESS}
    with httpx2.stream("POST", f"{server.url}/api/generate", json=body, timeout=60) as answer:
        lines = answer.iter_lines()  # whose end would close the connection
        next(lines)
        assert server.metric("running") == 1
    wait_for(lambda: server.metric("abandoned_total") == before + 1 and server.metric("running") == 0, 10)
    whole = {"model": "tiny", "prompt": "The sea", "stream": False, "options": ENDLESS}
    with pytest.raises(httpx2.ReadTimeout):  # and one that waits for all of it
        httpx2.post(f"{server.url}/api/generate", json=whole, timeout=0.2)
    wait_for(lambda: server.metric("abandoned_total") == before + 2 and server.metric("running") == 0, 10)
    assert server.metric("tokens_total") < 8000


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/api/chat", "/api/show"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the body is not readable JSON"),
        (b"[1]", "does not hold a JSON object"),
        (b'{"model": ', "the body is not readable JSON"),
        (b"\xff\xfe\x00", "the body is not readable JSON"),
        (b'{"model": ' + b"[" * 5000 + b"]" * 5000 + b"}", "levels deep"),
        (b'{"model": {"a": 1}}', "model: Input should be a valid string"),
        (b'{"model": "../../etc", "name": "/etc", "messages": [{"role": "user", "content": "a"}], "prompt": "a", '
         b'"max_tokens": 1}', "is not served"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_in_words(server: Server, path: str, content: bytes, said: str) -> None:
    answer = httpx2.post(server.url + path, content=content, timeout=60)
    assert 400 <= answer.status_code < 500 and said in answer.text
    error = answer.json()["error"]
    assert said in (error if path.startswith("/api") else error["message"])


@pytest.mark.parametrize(
    "body",
    [
        {"repeat_penalty": 5e-324},
        {"temperature": "NaN"}, {"top_p": 1.1}, {"top_k": -2}, {"max_tokens": 0}, {"n": 100}, {"stop": ["x"] * 99},
        {"seed": 1.5}, {"prompt": []}, {"prompt": [-1]}, {"prompt": [10**9]}, {"prompt": None},
        {"prompt": {"a": 1}}, {"echo": True}, {"logit_bias": {"1": 5}}, {"keep_alive": []}, {"logprobs": 99},
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_meant(server: Server, body: dict[str, object]) -> None:
    answer = server.post("/v1/completions", {"model": "tiny", "prompt": "The sea", "max_tokens": 1} | body)
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_a_seed_of_any_size_is_taken(server: Server) -> None:
    assert complete(server, "The sea", seed=2**80) and complete(server, "The sea", seed=-5)


def test_too_large_a_body(server: Server) -> None:
    answer = httpx2.post(f"{server.url}/v1/completions", content=b" " * (17 << 20), timeout=60)
    assert answer.status_code == 413 and "larger than 16 MiB" in answer.json()["error"]["message"]


def test_paths_that_lead_nowhere(server: Server) -> None:
    assert server.get("/v1/nothing").status_code == 404 and server.get("/api/chat").status_code == 405
    assert "GET /v1/nothing: not found" in server.get("/v1/nothing").text
    assert server.get("/").text == "moecli is running" and server.get("/health").json() == {"status": "ok"}


def test_it_describes_itself(server: Server) -> None:
    document = server.get("/openapi.json").json()
    chat = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "messages" in document["components"]["schemas"][chat["$ref"].rpartition("/")[2]]["properties"]


def test_pages_of_other_origins_and_other_names_are_refused(server: Server) -> None:
    assert server.get("/api/tags", Origin="http://evil.example").status_code == 403
    assert server.get("/api/tags", Origin="null").status_code == 403
    assert server.get("/api/tags", Host="evil.example").status_code == 403
    answer = server.get("/api/tags", Origin=server.url)
    assert answer.status_code == 200 and not [name for name in answer.headers if name.startswith("access-control")]


def test_a_port_that_is_taken(server: Server) -> None:
    port = server.url.rpartition(":")[2]
    with pytest.raises(MoecliError, match=f"cannot listen on 127.0.0.1:{port}: .*in use"):
        listen(ServerOptions("127.0.0.1", int(port), None))


def test_experts_from_disk_are_read_once_for_all_texts(tmp_path: Path) -> None:
    """A store that does not fit: the same tokens as where all is in memory, and fewer reads than one by one."""
    (tmp_path / "models").mkdir()
    store = packed(TINY, tmp_path / "models" / "small", "q4")
    least = fit(store.spec, "q4", 512, 0, None, 4).least_ram
    prompts = ["The sea was calm. " * (1 + 6 * number) for number in range(4)]
    alone = [said(prompt, 12, seed, store.folder, temperature=0.9) for seed, prompt in enumerate(prompts)]
    options = ("small", "--ctx", "512", "--ram", f"{least + (1 << 19)}B", "--parallel", "4")
    with serving(tmp_path, *options) as server, ThreadPoolExecutor(4) as clients:

        def ask(number: int) -> str:
            return complete(server, prompts[number], number, model="small", max_tokens=12)

        assert list(clients.map(ask, range(4))) == alone
        together = server.metric("expert_misses")
        assert list(map(ask, range(4))) == alone
        assert 0 < together < server.metric("expert_misses") - together


def test_a_key_a_full_queue_and_the_end(tmp_path: Path) -> None:
    options = ("tiny", "--api-key", "secret", "--parallel", "1", "--queue", "1", "--ctx", "8192")
    with serving(tmp_path, *options) as server, ThreadPoolExecutor() as clients:
        url, key = f"{server.url}/v1/completions", {"Authorization": "Bearer secret"}
        long = {"model": "tiny", "prompt": "The sea", "max_tokens": 8000, "stream": True} | ENDLESS
        short = long | {"max_tokens": 1, "stream": False}
        assert server.post("/v1/completions", short).status_code == 401 and server.get("/health").status_code == 200
        assert server.get("/api/tags", **{"x-api-key": "wrong"}).status_code == 401
        assert [each["name"] for each in server.get("/api/tags", **key).json()["models"]] == ["tiny"]
        assert server.post("/api/show", {"model": "dbrx"}, **key).status_code == 404
        with httpx2.stream("POST", url, json=long, headers=key, timeout=60) as answer:
            lines = answer.iter_lines()  # whose end would close the connection
            next(lines)
            waiting = clients.submit(lambda: server.post("/v1/completions", short, **key))
            wait_for(lambda: "moecli_waiting 1" in server.get("/metrics", **key).text, 10)
            refused = server.post("/v1/completions", short, **key)
            assert refused.status_code == 503 and "1 requests wait already" in refused.text
        assert waiting.result().json()["choices"][0]["text"]
        with httpx2.stream("POST", url, json=long | {"max_tokens": 100}, headers=key, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            received = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert received[-1]["choices"][0]["finish_reason"] == "length"  # it came to its end
        assert server.process.wait(20) == 0
        assert "Traceback" not in (tmp_path / "stderr").read_text()
        with pytest.raises(httpx2.ConnectError):
            server.get("/health")
