"""The API of Anthropic: /v1/messages, and how many tokens a conversation has."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from moecli.engine.loaded import OpenedModel
from moecli.engine.sampling import SamplingOptions
from moecli.errors import MoecliError
from moecli.serve.asked import Call, CalledFunction, ChatOptions, Function, Tool, ToolName, tools_of, turn
from moecli.serve.http import Body, Refused, Stream, event, explained, read, status_of, told
from moecli.serve.parts import Content, Part, TopK, Unit, nucleus, sampled_from, text_of
from moecli.serve.reply import AnswerEvent, Called, Ended
from moecli.serve.route import Route
from moecli.serve.service import Answer, AnswerOptions, Prompt, Service, begun, merged, whole
from moecli.text.chat import Message


class Block(Part):
    """A part of a message, which may be a call of a tool, or what that gave."""

    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: Content = None
    thinking: str | None = None


class ChatMessage(Body):
    """One turn."""

    role: Literal["user", "assistant"]
    content: str | list[Block] | None

    def turns(self, names: dict[str, str]) -> list[Message]:
        """As templates read it: what tools gave are turns of their own. `names`: of the tools by their calls."""
        blocks = self.content if isinstance(self.content, list) else []
        calls = [
            Call(id=each.id, function=CalledFunction(name=each.name or "", arguments=each.input or {}))
            for each in blocks if each.type == "tool_use"
        ]  # fmt: skip
        names |= {call.id or "": call.function.name for call in calls}
        given = [
            turn("tool", text_of(each.content), tool_call_id=each.tool_use_id, name=names.get(each.tool_use_id or ""))
            for each in blocks if each.type == "tool_result"
        ]  # fmt: skip
        thought = "".join(each.thinking or "" for each in blocks if each.type == "thinking")
        others = ("tool_use", "tool_result", "thinking", "redacted_thinking")
        rest: list[Part] = [each for each in blocks if each.type not in others]
        text = text_of(rest if blocks else self.content if isinstance(self.content, str) else None)
        said = [turn(self.role, text, calls, reasoning_content=thought)] if text or calls or not given else []
        return [*given, *said]


class ToolDeclared(Body):
    """A tool."""

    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any]

    def as_tool(self) -> Tool:
        """In OpenAI's form."""
        return Tool(function=Function(name=self.name, description=self.description, parameters=self.input_schema))


class ToolChoice(Body):
    """Whether and which tool is called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None


class CountTokensRequest(Body):
    """POST /v1/messages/count_tokens."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    system: Content = None
    tools: Annotated[list[ToolDeclared], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: dict[str, Any] | None = None

    async def prompt(self, service: Service, opened: OpenedModel) -> Prompt:
        """Of all that was said. Refused for what is not done here."""
        system = [Message("system", text_of(self.system))] if self.system else []
        names: dict[str, str] = {}
        said = [each for message in self.messages for each in message.turns(names)]
        return await service.chat(opened, [*system, *said], self.options())

    def options(self) -> ChatOptions:
        """What is asked beside an answer."""
        choice, kinds = self.tool_choice, {"any": "required", "tool": "named"}
        word = None if choice is None else kinds.get(choice.type, choice.type)
        tools = tools_of([each.as_tool() for each in self.tools or ()], word, choice.name if choice else None)
        kind = (self.thinking or {}).get("type")
        thinks = {None: None, "disabled": False, "enabled": True, "adaptive": None}
        if kind not in thinks:
            raise Refused(400, "thinking.type is neither enabled, adaptive nor disabled")
        return ChatOptions(**tools, think=thinks[kind])


class MessagesRequest(CountTokensRequest):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1)]
    stream: bool | None = False
    stop_sequences: Annotated[list[str], Field(max_length=16)] | None = None
    temperature: Unit | None = None
    top_k: TopK | None = None
    top_p: Unit | None = None

    def answer_options(self) -> AnswerOptions:
        """As the request says it."""
        sampling = SamplingOptions(self.temperature, sampled_from(self.top_k), nucleus(self.top_p))
        return AnswerOptions(sampling, max_tokens=self.max_tokens, stops=self.stop_sequences or ())


def routes(service: Service) -> list[Route]:
    """What is answered, and by whom."""
    return [
        Route("POST", "/v1/messages", partial(_messages, service), MessagesRequest),
        Route("POST", "/v1/messages/count_tokens", partial(_count, service), CountTokensRequest),
    ]


async def _count(service: Service, request: Request) -> Response:
    body = await read(request, CountTokensRequest)
    prompt = await body.prompt(service, await service.open(body.model))
    return JSONResponse({"input_tokens": len(prompt.ids)})


async def _messages(service: Service, request: Request) -> Response:
    body = await read(request, MessagesRequest)
    opened = await service.open(body.model)
    prompt = await body.prompt(service, opened)
    reply = service.submit(opened, prompt, body.answer_options())
    message: dict[str, Any] = {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": body.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": len(prompt.ids), "output_tokens": 0},
    }
    if body.stream:
        await begun(request, [reply])
        return Stream(_events(message, merged([reply]), request.url.path), "text/event-stream", [reply])
    (answer,) = await whole(request, [reply])
    content = {"content": _blocks(answer), "usage": _usage(answer.ended)}
    return JSONResponse(message | _stop(answer.ended, bool(answer.calls)) | content)


def _blocks(answer: Answer) -> list[dict[str, Any]]:
    """Reasoning, text and calls; a text at least."""
    thought = [_thought(answer.reasoning)] if answer.reasoning else []
    said = [{"type": "text", "text": answer.text}] if answer.text or not answer.calls else []
    return [*thought, *said, *(_use(each, dict(each.call.arguments)) for each in answer.calls)]


def _thought(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": ""}


def _use(called: Called, given: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": called.id, "name": called.call.name, "input": given}


async def _events(
    message: dict[str, Any], events: AsyncIterator[tuple[int, AnswerEvent]], path: str
) -> AsyncIterator[bytes]:
    blocks = _OpenBlock()
    called = False
    try:
        yield _event("message_start", message=message)
        async for _, each in events:
            if isinstance(each, Ended):
                if not blocks.begun:
                    yield blocks.switch("text", {"type": "text", "text": ""})
                yield blocks.close()
                yield _event("message_delta", delta=_stop(each, called), usage=_usage(each))
            elif isinstance(each, Called):
                called = True
                yield blocks.switch(each.id, _use(each, {}))
                given = json.dumps(each.call.arguments, ensure_ascii=False)
                yield blocks.delta(type="input_json_delta", partial_json=given)
            elif each.reasoning:
                yield blocks.switch("thinking", _thought(""))
                yield blocks.delta(type="thinking_delta", thinking=each.text)
            elif each.text:
                yield blocks.switch("text", {"type": "text", "text": ""})
                yield blocks.delta(type="text_delta", text=each.text)
        yield _event("message_stop")
    except MoecliError as error:
        yield event(told(path, status_of(error), explained(error)), "error")


class _OpenBlock:
    """The block of a message that is being told: each is begun and closed once, in their order."""

    def __init__(self) -> None:
        self._index, self._kind = -1, ""

    @property
    def begun(self) -> bool:
        """Whether there was any."""
        return self._index >= 0

    def switch(self, kind: str, block: dict[str, Any]) -> bytes:
        """Go on with a block of this kind, a new one unless it is open."""
        if kind == self._kind:
            return b""
        closing = self.close() if self.begun else b""
        self._index, self._kind = self._index + 1, kind
        return closing + _event("content_block_start", index=self._index, content_block=block)

    def delta(self, **delta: Any) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def close(self) -> bytes:
        return _event("content_block_stop", index=self._index)


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind} | fields, kind)


def _stop(ended: Ended, called: bool) -> dict[str, Any]:
    ends = {"length": "max_tokens", "stop": "tool_use" if called else "end_turn"}
    return {
        "stop_reason": "stop_sequence" if ended.stop is not None else ends[ended.reason],
        "stop_sequence": ended.stop,
    }


def _usage(ended: Ended) -> dict[str, Any]:
    """Tokens that were known count apart, as the API has it."""
    return {
        "input_tokens": ended.prompt_tokens - ended.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": ended.cached_tokens,
        "output_tokens": ended.tokens,
    }
