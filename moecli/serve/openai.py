"""The API of OpenAI: /v1/models, /v1/chat/completions and /v1/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from moecli.engine.sampling import SamplingOptions
from moecli.errors import MoecliError
from moecli.serve.http import Body, Refused, Stream, event, explained, read, status_of, told
from moecli.serve.parts import Content, TopK, Unit, nucleus, sampled_from, text_of
from moecli.serve.reply import Ended, Piece, Scored
from moecli.serve.route import Route
from moecli.serve.service import AnswerOptions, Service, begun, merged, whole
from moecli.text.chat import Message

_SHORT = 16  # tokens of /v1/completions that nobody asked for, as the API has it
Stops = str | Annotated[list[str], Field(max_length=16)] | None


class StreamOptions(Body):
    """What a stream tells besides the text."""

    include_usage: bool = False


class ResponseFormat(Body):
    """Only plain text."""

    type: str = "text"


class CommonFields(Body):
    """What requests for chats and for completions share, and what other servers of this API add to it."""

    model: str
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = 1
    stop: Stops = None
    seed: int | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Unit | None = None
    top_k: TopK | None = None
    min_p: Unit | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    keep_alive: str | float | None = None

    def refuse(self) -> None:
        """Refused for what would change the answer and is not done here."""
        for name in ("presence_penalty", "frequency_penalty", "logit_bias"):
            if getattr(self, name):
                raise Refused(400, f"{name} is not supported", "repeat_penalty is")

    def answer_options(self, max_tokens: int | None, top_logprobs: int | None, number: int) -> AnswerOptions:
        """Of the choice with this `number`."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or ()
        top_k = sampled_from(self.top_k)
        sampling = SamplingOptions(self.temperature, top_k, nucleus(self.top_p), self.min_p, self.repeat_penalty)
        seed = None if self.seed is None else self.seed + number
        return AnswerOptions(sampling, seed, max_tokens, stops, top_logprobs)


class ChatMessage(Body):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content = None


class ChatRequest(CommonFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None

    def refuse(self) -> None:
        super().refuse()
        if self.tools or self.functions:
            raise Refused(400, "tools are not supported")
        if self.response_format is not None and self.response_format.type != "text":
            raise Refused(400, f"response_format {self.response_format.type[:40]} is not supported", "text is")


class CompletionRequest(CommonFields):
    """POST /v1/completions."""

    prompt: str | list[int] | Annotated[list[str] | list[list[int]], Field(min_length=1, max_length=64)]
    max_tokens: Annotated[int, Field(ge=1)] | None = _SHORT
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = False
    suffix: str | None = None
    best_of: int | None = None

    def refuse(self) -> None:
        super().refuse()
        if self.echo or self.suffix or (self.best_of or 1) > 1:
            raise Refused(400, "echo, suffix and best_of are not supported")


def routes(service: Service) -> list[Route]:
    """What is answered, and by whom."""
    return [
        Route("GET", "/v1/models", partial(_models, service)),
        Route("GET", "/v1/models/{name:path}", partial(_model, service)),
        Route("POST", "/v1/chat/completions", partial(_chat, service), ChatRequest),
        Route("POST", "/v1/completions", partial(_complete, service), CompletionRequest),
    ]


async def _models(service: Service, request: Request) -> Response:
    models = [_described(each.name, each.changed) for each in await service.all()]
    return JSONResponse({"object": "list", "data": models})


async def _model(service: Service, request: Request) -> Response:
    name = request.path_params["name"]
    await service.find(name)
    return JSONResponse(_described(name, 0))


def _described(name: str, changed: float) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(changed), "owned_by": "moecli"}


async def _chat(service: Service, request: Request) -> Response:
    body = await read(request, ChatRequest)
    body.refuse()
    opened = await service.open(body.model)
    messages = [Message(each.role, text_of(each.content)) for each in body.messages]
    prompt, continues = await service.chat(opened, messages)
    scored = (body.top_logprobs or 0) if body.logprobs else None
    most = body.max_completion_tokens or body.max_tokens
    wanted = [body.answer_options(most, scored, number) for number in range(body.n or 1)]
    replies = service.submit_all([(opened, prompt, continues, options) for options in wanted])
    frame = _frame("chatcmpl", "chat.completion", body.model)
    if not body.stream:
        answers = await whole(request, replies)
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": _chat_scores(answer.pieces) if scored is not None else None,
                "finish_reason": answer.ended.reason,
            }
            for number, answer in enumerate(answers)
        ]
        return JSONResponse(
            frame | {"choices": choices, "usage": _usage([each.ended for each in answers], len(wanted))}
        )
    await begun(request, replies)

    def opening(number: int) -> dict[str, Any]:
        return {"index": number, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def choice(number: int, each: Piece | Ended) -> dict[str, Any]:
        if isinstance(each, Ended):
            return {"index": number, "delta": {}, "logprobs": None, "finish_reason": each.reason}
        scores = _chat_scores([each]) if scored is not None else None
        return {"index": number, "delta": {"content": each.text}, "logprobs": scores, "finish_reason": None}

    frame["object"] = "chat.completion.chunk"
    first = [opening(number) for number in range(len(replies))]
    chunks = _chunks(frame, first, choice, merged(replies), _wants_usage(body), len(wanted), request.url.path)
    return Stream(chunks, "text/event-stream", replies)


async def _complete(service: Service, request: Request) -> Response:
    body = await read(request, CompletionRequest)
    body.refuse()
    opened = await service.open(body.model)
    prompts = [await service.any(opened, each) for each in _prompts(body.prompt)]
    count = body.n or 1
    wanted = [body.answer_options(body.max_tokens, body.logprobs, number) for number in range(count)]
    replies = service.submit_all([(opened, *prompt, options) for prompt in prompts for options in wanted])
    frame = _frame("cmpl", "text_completion", body.model)
    if not body.stream:
        answers = await whole(request, replies)
        choices = [
            {
                "index": number,
                "text": answer.text,
                "logprobs": _text_scores(answer.pieces, 0) if body.logprobs is not None else None,
                "finish_reason": answer.ended.reason,
            }
            for number, answer in enumerate(answers)
        ]
        return JSONResponse(frame | {"choices": choices, "usage": _usage([each.ended for each in answers], count)})
    await begun(request, replies)
    lengths = [0] * len(replies)

    def choice(number: int, each: Piece | Ended) -> dict[str, Any]:
        if isinstance(each, Ended):
            return {"index": number, "text": "", "logprobs": None, "finish_reason": each.reason}
        scores = _text_scores([each], lengths[number]) if body.logprobs is not None else None
        lengths[number] += len(each.text)
        return {"index": number, "text": each.text, "logprobs": scores, "finish_reason": None}

    chunks = _chunks(frame, [], choice, merged(replies), _wants_usage(body), count, request.url.path)
    return Stream(chunks, "text/event-stream", replies)


def _prompts(given: str | list[int] | list[str] | list[list[int]]) -> list[str | list[int]]:
    if isinstance(given, str):
        return [given]
    if not given or isinstance(given[0], int):
        return [[each for each in given if isinstance(each, int)]]
    return [each for each in given if not isinstance(each, int)]


def _wants_usage(body: CommonFields) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage


async def _chunks(
    frame: dict[str, Any],
    first: Sequence[dict[str, Any]],
    choice: Callable[[int, Piece | Ended], dict[str, Any]],
    events: AsyncIterator[tuple[int, Piece | Ended]],
    with_usage: bool,
    same: int,
    path: str,
) -> AsyncIterator[bytes]:
    usage: dict[str, Any] = {"usage": None} if with_usage else {}
    ended: list[Ended] = []
    try:
        for each in first:
            yield event(frame | {"choices": [each]} | usage)
        async for number, each_event in events:
            if isinstance(each_event, Ended):
                ended.append(each_event)
            yield event(frame | {"choices": [choice(number, each_event)]} | usage)
        if with_usage:
            yield event(frame | {"choices": [], "usage": _usage(ended, same)})
        yield event("[DONE]")
    except MoecliError as error:
        yield event(told(path, status_of(error), explained(error)))


def _frame(prefix: str, kind: str, name: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": name}


def _usage(ended: Sequence[Ended], same: int) -> dict[str, Any]:
    """A prompt counts once for its `same` answers."""
    prompt, made = sum(each.prompt_tokens for each in ended) // same, sum(each.tokens for each in ended)
    cached = sum(each.cached_tokens for each in ended[:1])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _chat_scores(pieces: Sequence[Piece]) -> dict[str, Any]:
    return {"content": [_scored(token) for piece in pieces for token in piece.tokens], "refusal": None}


def _scored(token: Scored) -> dict[str, Any]:
    top = [_named(name, score) for name, score in token.top]
    return _named(token.token, token.logprob) | {"top_logprobs": top}


def _named(name: str, score: float) -> dict[str, Any]:
    return {"token": name, "logprob": score, "bytes": list(name.encode())}


def _text_scores(pieces: Sequence[Piece], start: int) -> dict[str, Any]:
    tokens = [token for piece in pieces for token in piece.tokens]
    offsets, place = [], start
    for token in tokens:
        offsets.append(place)
        place += len(token.token)
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [dict(token.top) for token in tokens],
        "text_offset": offsets,
    }
