"""Requests in number, right ones and such as nobody should send: none fails the server, none stays in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from tests.support import scripted
from tests.support.server import Server, serving

pytestmark = pytest.mark.slow
POSTED = (
    "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/messages/count_tokens", "/api/chat",
    "/api/generate", "/api/show", "/api/pull",
)  # fmt: skip
ASKED = ("/v1/models", "/v1/models/{name}", "/api/tags", "/api/ps", "/health", "/metrics")
OPERATIONS = [*(("POST", path) for path in POSTED), *(("GET", path) for path in ASKED)]
EXAMPLES = 12  # of each operation, right ones and wrong ones
MIB = 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("serve")
    scripted.add(home)
    with serving(home, "--ctx", "1024") as running:
        yield running


def short(body: Any, name: str) -> Any:
    """The same of a model that is here, and so that it is soon over."""
    if isinstance(body, dict):
        body = body | {key: name for key in ("model", "name") if isinstance(body.get(key), str)}
        body |= {
            key: min(body[key], 2) for key in ("max_tokens", "max_completion_tokens") if type(body.get(key)) is int
        }
        if "messages" in body or "prompt" in body:
            body.setdefault("max_tokens", 2)
            options = body.get("options")
            if options is None or isinstance(options, dict):
                body["options"] = (options or {}) | {"num_predict": 2}
    return body


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_by_its_own_schema_no_request_fails_the_server(server: Server, method: str, path: str) -> None:
    operation = schemathesis.openapi.from_url(f"{server.url}/openapi.json")[path][method]
    modes = [GenerationMode.POSITIVE] + ([GenerationMode.NEGATIVE] if method == "POST" else [])
    for mode in modes:

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            if isinstance(case.body, dict):
                case.body = short(case.body, "scripted" if len(str(case.body)) % 2 else "tiny")
            answer = case.call()
            assert answer.status_code < 500, (case.body, answer.text)
            if answer.status_code >= 400 and answer.headers.get("content-type", [""])[0] == "application/json":
                error = answer.json()["error"]
                assert error if path.startswith("/api") else error["message"]

        check()


DEEP: dict[str, Any] = {}
for _ in range(40):
    DEEP = {"type": "array", "items": DEEP}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"multipleOf": 99991 * 99989}}}},
         "multipleOf"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"pattern": "("}}}}, "JSON schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "file:///etc/passwd"}}}},
         "JSON schema"),
        ({"tools": [TOOL] * 200}, "at most 128"),
        ({"tools": [{"type": "function", "function": {"name": "a b\n"}}]}, "tools.0.function.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice names none"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": 3}}}],
          "tool_choice": "required"}, "is not supported"),
        ({"tools": [TOOL], "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"chat_template_kwargs": {"messages": []}}, "has no option 'messages'"),
        ({"chat_template_kwargs": {"__class__": 1}}, "has no option"),
        ({"reasoning_effort": "x" * 99}, "cannot be set"),
        ({"messages": [{"role": "tool", "tool_call_id": "x", "content": [{"type": "image_url"}]}]}, "image_url"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "[1]"}}]}]},
         "JSON object"),
        ({"functions": [{"name": "a"}]}, "tools are"),
    ],
)  # fmt: skip
def test_what_no_answer_can_be_is_refused_in_words(server: Server, body: dict[str, Any], said: str) -> None:
    asked = {"model": "scripted", "max_tokens": 2, "messages": [{"role": "user", "content": "a"}]} | body
    answer = server.post("/v1/chat/completions", asked)
    assert answer.status_code == 400 and said in answer.json()["error"]["message"], answer.text


def test_a_schema_of_many_levels_is_answered(server: Server) -> None:
    form = {"type": "json_schema", "json_schema": {"schema": DEEP}}
    asked = {"model": "tiny", "prompt": "a", "max_tokens": 2, "response_format": form}
    assert server.post("/v1/completions", asked).json()["choices"][0]["text"].startswith("[")


def test_a_thousand_requests_leave_nothing_in_memory(server: Server) -> None:
    """Of all kinds, eight at a time; the first hundreds fill what is kept on purpose."""
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    chat = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
    kinds: list[tuple[str, dict[str, Any], int]] = [
        ("/v1/completions", {"model": "tiny", "prompt": "The sea", "max_tokens": 1}, 200),
        ("/v1/completions", {"model": "tiny", "prompt": "A ship", "max_tokens": 1, "stream": True, "logprobs": 2}, 200),
        ("/api/generate", {"model": "tiny", "prompt": "A", "format": schema, "options": {"num_predict": 2}}, 200),
        ("/v1/chat/completions", chat | {"max_tokens": 2, "tools": [TOOL]}, 200),
        ("/v1/messages", {"model": "scripted", "max_tokens": 1, "messages": chat["messages"], "stream": True}, 200),
        ("/v1/chat/completions", chat | {"n": 99}, 400),
        ("/api/chat", {"model": "nobody", "messages": []}, 404),
    ]
    process = psutil.Process(server.process.pid)

    def ask(numbers: range) -> None:
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            for number in numbers:
                path, body, status = kinds[number % len(kinds)]
                assert client.post(path, json=body).status_code == status

    def ask_all(count: int) -> int:
        with ThreadPoolExecutor(8) as clients:
            list(clients.map(ask, [range(start, count, 8) for start in range(8)]))
        return int(process.memory_info().rss)

    before = ask_all(400)
    after = ask_all(1000)
    assert after - before < 12 * MIB, f"{(after - before) / MIB:.1f} MiB more"
    assert json.loads(server.get("/health").text) == {"status": "ok"} and server.metric("running") == 0
