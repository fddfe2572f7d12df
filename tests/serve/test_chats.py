"""Tools, reasoning and answers of a given form, by the clients of each API: streaming and not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import ollama
import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from tests.support import scripted
from tests.support.server import Server, serving

pytestmark = pytest.mark.slow
PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 99}, "b": {"type": "string", "maxLength": 3}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": PARAMETERS}}
CLAUDE_TOOL: Any = {"name": "add", "description": "Adds.", "input_schema": PARAMETERS}
ASKED: Any = [{"role": "user", "content": "What is forty and two?"}]
GIVEN = {"a": 40, "b": "2"}
THOUGHT, SAID = "".join(scripted.THOUGHT), "".join(scripted.SAID)
WRITTEN = f"{SAID}<tool_call>{scripted.CALL}</tool_call>"  # where no tools were given, it is what was said


class Ship(BaseModel):
    """What a client wants to know."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["brig", "sloop"]
    masts: int = Field(ge=1, le=3)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("serve")
    scripted.add(home)
    with serving(home) as running:
        yield running


# OpenAI


def test_openai_reasoning_text_and_call(by_openai: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "scripted", "messages": ASKED, "tools": [TOOL], "temperature": 0}
    choice = by_openai.chat.completions.create(**asked).choices[0]
    message = choice.message
    assert (message.content, message.reasoning_content, choice.finish_reason) == (SAID, THOUGHT, "tool_calls")
    assert message.tool_calls and len(message.tool_calls) == 1
    called = message.tool_calls[0]
    assert called.function.name == "add" and json.loads(called.function.arguments) == GIVEN
    deltas = [each.choices[0].delta for each in by_openai.chat.completions.create(stream=True, **asked)]
    assert "".join(each.content or "" for each in deltas) == SAID
    assert "".join(getattr(each, "reasoning_content", None) or "" for each in deltas) == THOUGHT
    (streamed,) = [call for each in deltas for call in each.tool_calls or ()]
    assert streamed.function and json.loads(streamed.function.arguments or "") == GIVEN
    with by_openai.chat.completions.stream(**asked) as stream:  # as the client puts it together
        final = stream.get_final_completion().choices[0]
    assert final.message.content == SAID and final.finish_reason == "tool_calls"


def test_openai_options_of_the_template(by_openai: openai.OpenAI) -> None:
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    for more in ({"extra_body": off}, {"reasoning_effort": "none"}):
        message = by_openai.chat.completions.create(model="scripted", messages=ASKED, temperature=0, **more)
        assert message.choices[0].message.content == WRITTEN
        assert getattr(message.choices[0].message, "reasoning_content", None) is None
    with pytest.raises(openai.BadRequestError, match="has no option 'mood': it has enable_thinking"):
        more = {"chat_template_kwargs": {"mood": 1}}
        by_openai.chat.completions.create(model="scripted", messages=ASKED, extra_body=more)


def test_openai_what_tools_gave_is_part_of_the_conversation(by_openai: openai.OpenAI) -> None:
    def length(*messages: dict[str, Any]) -> int:
        answer = by_openai.chat.completions.create(
            model="scripted", messages=[*ASKED, *messages], tools=[TOOL], temperature=0, max_tokens=1
        )
        assert answer.usage
        return answer.usage.prompt_tokens

    arguments = json.dumps(GIVEN)
    call = {"id": "call00001", "type": "function", "function": {"name": "add", "arguments": arguments}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "call00001", "content": "42"}
    assert length() < length(calling) < length(calling, result)
    with pytest.raises(openai.BadRequestError, match="arguments: the text is not readable JSON"):
        broken = call | {"function": {"name": "add", "arguments": "{"}}
        length(calling | {"tool_calls": [broken]})


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_openai_a_call_can_be_required(by_openai: openai.OpenAI, choice: Any) -> None:
    other = {"type": "function", "function": {"name": "subtract", "parameters": PARAMETERS}}
    answer = by_openai.chat.completions.create(
        model="scripted", messages=ASKED, tools=[other, TOOL], tool_choice=choice, temperature=1, seed=3,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}, "top_k": 20},
    ).choices[0]  # fmt: skip
    assert answer.message.tool_calls and answer.finish_reason == "tool_calls" and not answer.message.content
    (call,) = answer.message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert type(arguments["a"]) is int and arguments["a"] <= 99 and set(arguments) <= {"a", "b"}
    assert call.function.name == "add" or choice == "required"


def test_openai_no_tools_are_called_where_none_may_be(by_openai: openai.OpenAI) -> None:
    answer = by_openai.chat.completions.create(
        model="scripted", messages=ASKED, tools=[TOOL], tool_choice="none", temperature=0
    ).choices[0]
    assert (answer.message.content, answer.finish_reason) == (WRITTEN, "stop")


def test_openai_answers_of_a_form(by_openai: openai.OpenAI) -> None:
    silent = {"chat_template_kwargs": {"enable_thinking": False}}
    for name, body in (("tiny", {}), ("scripted", silent)):
        more: Any = {"extra_body": {"top_k": 40} | body}
        parsed = by_openai.chat.completions.parse(model=name, messages=ASKED, response_format=Ship, seed=5, **more)
        assert parsed.choices[0].message.parsed and parsed.choices[0].message.parsed.masts in (1, 2, 3)
    schema = {"name": "ship", "schema": Ship.model_json_schema(), "strict": True}
    form: Any = {"type": "json_schema", "json_schema": schema}
    chunks = by_openai.chat.completions.create(model="tiny", messages=ASKED, response_format=form, seed=5, stream=True)
    assert Ship.model_validate_json("".join(each.choices[0].delta.content or "" for each in chunks))
    cut = by_openai.chat.completions.create(model="tiny", messages=ASKED, response_format=form, max_tokens=2)
    assert cut.choices[0].finish_reason == "length"
    whole: Any = {"type": "json_object"}
    answers = by_openai.chat.completions.create(
        model="tiny", messages=ASKED, response_format=whole, n=3, seed=1, temperature=1, max_tokens=300
    )
    ended = [each.message.content for each in answers.choices if each.finish_reason == "stop"]
    assert ended and len(set(ended)) == len(ended) and all(isinstance(json.loads(each or ""), dict) for each in ended)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"type": "json_schema", "json_schema": {"name": "a"}}, "holds no schema"),
        ({"type": "json_schema", "json_schema": {"schema": {"type": "objec"}}}, "JSON schema is not supported"),
        ({"type": "xml"}, "response_format.type"),
    ],
)
def test_openai_a_form_that_is_none(by_openai: openai.OpenAI, form: Any, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        by_openai.chat.completions.create(model="tiny", messages=ASKED, response_format=form)


def test_tools_and_thinking_of_models_that_have_none(server: Server, by_openai: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="tiny has no chat template, and so no tools"):
        by_openai.chat.completions.create(model="tiny", messages=ASKED, tools=[TOOL])
    refused = server.post("/api/chat", {"model": "tiny", "messages": ASKED, "think": True})
    assert refused.status_code == 400 and "does not reason" in refused.json()["error"]
    refused = server.post("/v1/messages", {"model": "tiny", "max_tokens": 1, "messages": ASKED, "tools": [CLAUDE_TOOL]})
    assert refused.status_code == 400 and "no tools" in refused.json()["error"]["message"]


# Ollama


def test_ollama_reasoning_text_and_call(by_ollama: ollama.Client) -> None:
    asked: dict[str, Any] = {"model": "scripted", "messages": ASKED, "tools": [TOOL], "options": {"temperature": 0}}
    message = by_ollama.chat(think=True, **asked).message
    assert (message.content, message.thinking) == (SAID, THOUGHT) and message.tool_calls
    assert [(each.function.name, dict(each.function.arguments)) for each in message.tool_calls] == [("add", GIVEN)]
    pieces = [each.message for each in by_ollama.chat(stream=True, **asked)]
    assert "".join(each.thinking or "" for each in pieces) == THOUGHT
    assert "".join(each.content or "" for each in pieces) == SAID
    assert [dict(call.function.arguments) for each in pieces for call in each.tool_calls or ()] == [GIVEN]
    silent = by_ollama.chat(think=False, **asked).message
    assert (silent.content, silent.thinking) == (SAID, None)
    results = [*ASKED, message, {"role": "tool", "tool_name": "add", "content": "42"}]
    again = by_ollama.chat("scripted", results, tools=[TOOL], options={"temperature": 0})
    assert again.message.tool_calls and again.prompt_eval_count
    plain = by_ollama.generate("scripted", "hello", think=False, options={"temperature": 0})
    assert (plain.response, plain.thinking) == (WRITTEN, None)
    assert by_ollama.generate("scripted", "hello", options={"temperature": 0}).thinking == THOUGHT
    assert set(by_ollama.show("scripted").capabilities or ()) == {"completion", "tools", "thinking"}


def test_ollama_answers_of_a_form(server: Server, by_ollama: ollama.Client) -> None:
    schema = Ship.model_json_schema()
    assert Ship.model_validate_json(by_ollama.chat("tiny", ASKED, format=schema).message.content or "")
    pieces = by_ollama.generate("tiny", "A ship", format=schema, stream=True, options={"seed": 2})
    assert Ship.model_validate_json("".join(each.response for each in pieces))
    answer = by_ollama.generate("tiny", "A ship", format="json", raw=True, options={"num_predict": 300, "seed": 1})
    assert answer.done_reason == "length" or isinstance(json.loads(answer.response), dict)
    refused = server.post("/api/generate", {"model": "tiny", "prompt": "A ship", "format": "yaml"})
    assert refused.status_code == 400 and "format is neither a JSON schema nor 'json'" in refused.json()["error"]


# Anthropic


def test_anthropic_reasoning_text_and_call(by_anthropic: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": "scripted", "max_tokens": 90, "messages": ASKED, "tools": [CLAUDE_TOOL]}
    asked["extra_body"] = {"temperature": 0}
    answer = by_anthropic.messages.create(**asked)
    assert [each.type for each in answer.content] == ["thinking", "text", "tool_use"]
    assert (answer.content[0].thinking, answer.content[1].text) == (THOUGHT, SAID)
    assert (answer.content[2].name, answer.content[2].input, answer.stop_reason) == ("add", GIVEN, "tool_use")
    with by_anthropic.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    assert [each.type for each in streamed.content] == ["thinking", "text", "tool_use"]
    assert (streamed.content[1].text, streamed.content[2].input) == (SAID, GIVEN)
    off = by_anthropic.messages.create(thinking={"type": "disabled"}, **asked)
    assert [each.type for each in off.content] == ["text", "tool_use"]
    result = {"type": "tool_result", "tool_use_id": answer.content[2].id, "content": "42"}
    turns: Any = [*ASKED, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    counted = by_anthropic.messages.count_tokens(model="scripted", messages=turns, tools=[CLAUDE_TOOL])
    assert counted.input_tokens > answer.usage.input_tokens + answer.usage.cache_read_input_tokens
    chosen: Any = {"type": "any"}
    forced = by_anthropic.messages.create(tool_choice=chosen, thinking={"type": "disabled"}, **asked)
    assert [each.type for each in forced.content] == ["tool_use"] and set(forced.content[0].input) <= {"a", "b"}


# What is built upon them


def test_langchain_agents_get_calls_and_forms(server: Server) -> None:
    from langchain_ollama import ChatOllama
    from langchain_openai import ChatOpenAI

    by_openai = ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model="scripted", temperature=0)  # type: ignore[arg-type]
    by_ollama = ChatOllama(base_url=server.url, model="scripted", temperature=0)
    for model in (by_openai, by_ollama):
        (call,) = model.bind_tools([TOOL]).invoke("What is forty and two?").tool_calls
        assert (call["name"], call["args"]) == ("add", GIVEN)
    tiny = ChatOllama(base_url=server.url, model="tiny", seed=1)
    assert isinstance(tiny.with_structured_output(Ship).invoke("A ship"), Ship)
