"""The API of OpenAI: /v1/models, /v1/chat/completions and /v1/completions."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from moecli.errors import MoecliError
from moecli.serve.http import Stream, event, explained, read, status_of, told
from moecli.serve.openai_bodies import ChatRequest, CommonFields, CompletionRequest
from moecli.serve.reply import AnswerEvent, Called, Ended, Piece, Scored
from moecli.serve.route import Route
from moecli.serve.service import Answer, Service, begun, merged, whole


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
    prompt = await service.chat(opened, body.said(), body.options())
    scored = (body.top_logprobs or 0) if body.logprobs else None
    most = body.max_completion_tokens or body.max_tokens
    wanted = [body.answer_options(most, scored, number) for number in range(body.n or 1)]
    replies = service.submit_all([(opened, prompt, options) for options in wanted])
    frame = _frame("chatcmpl", "chat.completion", body.model)
    if not body.stream:
        answers = await whole(request, replies)
        choices = [
            {
                "index": number,
                "message": _message(answer),
                "logprobs": _chat_scores(answer.pieces) if scored is not None else None,
                "finish_reason": _reason(answer.ended, bool(answer.calls)),
            }
            for number, answer in enumerate(answers)
        ]
        return JSONResponse(
            frame | {"choices": choices, "usage": _usage([each.ended for each in answers], len(wanted))}
        )
    await begun(request, replies)

    def opening(number: int) -> dict[str, Any]:
        return {"index": number, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    called = [0] * len(replies)  # tools, by each choice

    def choice(number: int, each: AnswerEvent) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        scores, reason = None, None
        if isinstance(each, Ended):
            reason = _reason(each, called[number] > 0)
        elif isinstance(each, Called):
            delta = {"tool_calls": [{"index": called[number]} | _call(each)]}
            called[number] += 1
        else:
            delta = {"reasoning_content" if each.reasoning else "content": each.text}
            scores = _chat_scores([each]) if scored is not None else None
        return {"index": number, "delta": delta, "logprobs": scores, "finish_reason": reason}

    frame["object"] = "chat.completion.chunk"
    first = [opening(number) for number in range(len(replies))]
    chunks = _chunks(frame, first, choice, merged(replies), _wants_usage(body), len(wanted), request.url.path)
    return Stream(chunks, "text/event-stream", replies)


async def _complete(service: Service, request: Request) -> Response:
    body = await read(request, CompletionRequest)
    body.refuse()
    opened = await service.open(body.model)
    plain = [await service.any(opened, each) for each in _prompts(body.prompt)]
    prompts = [await service.held(opened, each, body.grammar) for each in plain]
    count = body.n or 1
    wanted = [body.answer_options(body.max_tokens, body.logprobs, number) for number in range(count)]
    replies = service.submit_all([(opened, prompt, options) for prompt in prompts for options in wanted])
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

    def choice(number: int, each: AnswerEvent) -> dict[str, Any]:
        if isinstance(each, Called):
            raise AssertionError("a text calls no tools")
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
    choice: Callable[[int, AnswerEvent], dict[str, Any]],
    events: AsyncIterator[tuple[int, AnswerEvent]],
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


def _message(answer: Answer) -> dict[str, Any]:
    """What was said; no content where tools are called and nothing was said."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message |= {"content": answer.text or None, "tool_calls": [_call(each) for each in answer.calls]}
    return message


def _call(called: Called) -> dict[str, Any]:
    arguments = json.dumps(called.call.arguments, ensure_ascii=False)
    return {"id": called.id, "type": "function", "function": {"name": called.call.name, "arguments": arguments}}


def _reason(ended: Ended, called: bool) -> str:
    return "tool_calls" if called and ended.reason == "stop" else ended.reason


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
