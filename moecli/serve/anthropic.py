"""The API of Anthropic: /v1/messages, and how many tokens a conversation has."""

from __future__ import annotations

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
from moecli.serve.http import Body, Refused, Stream, event, explained, read, status_of, told
from moecli.serve.parts import Content, TopK, Unit, nucleus, sampled_from, text_of
from moecli.serve.reply import Ended, Piece
from moecli.serve.route import Route
from moecli.serve.service import AnswerOptions, Service, begun, merged, whole
from moecli.text.chat import Message


class ChatMessage(Body):
    """One turn."""

    role: Literal["user", "assistant"]
    content: Content


class CountTokensRequest(Body):
    """POST /v1/messages/count_tokens."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    system: Content = None
    tools: list[Any] | None = None
    thinking: dict[str, Any] | None = None

    async def ids(self, service: Service, opened: OpenedModel) -> tuple[list[int], bool]:
        """Of all that was said, and whether the answer goes on in it. Refused for what is not done here."""
        if self.tools:
            raise Refused(400, "tools are not supported")
        if self.thinking and self.thinking.get("type") not in ("disabled", None):
            raise Refused(400, "thinking is not supported")
        system = [Message("system", text_of(self.system))] if self.system else []
        return await service.chat(
            opened, [*system, *(Message(each.role, text_of(each.content)) for each in self.messages)]
        )


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
    prompt, _ = await body.ids(service, await service.open(body.model))
    return JSONResponse({"input_tokens": len(prompt)})


async def _messages(service: Service, request: Request) -> Response:
    body = await read(request, MessagesRequest)
    opened = await service.open(body.model)
    prompt, continues = await body.ids(service, opened)
    reply = service.submit(opened, prompt, continues, body.answer_options())
    message: dict[str, Any] = {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": body.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": len(prompt), "output_tokens": 0},
    }
    if body.stream:
        await begun(request, [reply])
        return Stream(_events(message, merged([reply]), request.url.path), "text/event-stream", [reply])
    (answer,) = await whole(request, [reply])
    content = {"content": [{"type": "text", "text": answer.text}], "usage": _usage(answer.ended)}
    return JSONResponse(message | _stop(answer.ended) | content)


async def _events(
    message: dict[str, Any], events: AsyncIterator[tuple[int, Piece | Ended]], path: str
) -> AsyncIterator[bytes]:
    try:
        yield _event("message_start", message=message)
        yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        async for _, each in events:
            if isinstance(each, Piece):
                yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": each.text})
            else:
                yield _event("content_block_stop", index=0)
                yield _event("message_delta", delta=_stop(each), usage=_usage(each))
        yield _event("message_stop")
    except MoecliError as error:
        yield event(told(path, status_of(error), explained(error)), "error")


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind} | fields, kind)


def _stop(ended: Ended) -> dict[str, Any]:
    ends = {"length": "max_tokens", "stop": "end_turn"}
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
