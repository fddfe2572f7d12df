"""The API of Ollama: /api/generate, /api/chat, and what its clients ask about models."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from moecli import __version__
from moecli.engine.loaded import OpenedModel
from moecli.errors import ModelNotFound, MoecliError
from moecli.model import params
from moecli.serve.asked import ChatOptions, form_of, tools_of
from moecli.serve.http import Refused, Stream, explained, line, read
from moecli.serve.models import ServedModel
from moecli.serve.ollama_bodies import ChatRequest, CommonFields, GenerateRequest, ModelRequest
from moecli.serve.reply import AnswerEvent, Called, Ended, Reply
from moecli.serve.route import Route
from moecli.serve.service import Service, begun, merged, whole
from moecli.text.chat import Message
from moecli.text.template_options import calls_tools, reasons
from moecli.units import figure

_FOREVER = timedelta(days=365 * 100)  # how a time is told that never comes
Fill = Callable[[str, str, Sequence[Called]], dict[str, Any]]  # text, reasoning and calls in an endpoint's form


def routes(service: Service) -> list[Route]:
    """What is answered, and by whom."""
    return [
        Route("POST", "/api/generate", partial(_generate, service), GenerateRequest),
        Route("POST", "/api/chat", partial(_chat, service), ChatRequest),
        Route("GET", "/api/tags", partial(_tags, service)),
        Route("POST", "/api/show", partial(_show, service), ModelRequest),
        Route("GET", "/api/ps", partial(_ps, service)),
        Route("GET", "/api/version", _version),
        Route("POST", "/api/pull", partial(_pull, service), ModelRequest),
    ]


async def _generate(service: Service, request: Request) -> Response:
    body = await read(request, GenerateRequest)
    body.refuse()
    opened = await service.open(body.model)
    if not body.prompt:
        return await _load(service, request, body, opened, _filled_text)
    grammar = form_of(body.format)
    if body.raw:
        prompt = await service.held(opened, await service.text(opened, body.prompt), grammar)
    else:
        system = [Message("system", body.system)] if body.system else []
        asked = ChatOptions(think=body.think, grammar=grammar)
        prompt = await service.chat(opened, [*system, Message("user", body.prompt)], asked)
    return await _answer(request, body, service.submit(opened, prompt, body.answer_options()), _filled_text)


async def _chat(service: Service, request: Request) -> Response:
    body = await read(request, ChatRequest)
    opened = await service.open(body.model)
    if not body.messages:
        return await _load(service, request, body, opened, _filled_message)
    asked = ChatOptions(**tools_of(body.tools, "auto", None), think=body.think, grammar=form_of(body.format))
    prompt = await service.chat(opened, [each.said() for each in body.messages], asked)
    return await _answer(request, body, service.submit(opened, prompt, body.answer_options()), _filled_message)


def _filled_text(text: str, reasoning: str, calls: Sequence[Called]) -> dict[str, Any]:
    return {"response": text} | ({"thinking": reasoning} if reasoning else {})


def _filled_message(text: str, reasoning: str, calls: Sequence[Called]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if reasoning:
        message["thinking"] = reasoning
    if calls:
        named = [{"name": each.call.name, "arguments": dict(each.call.arguments)} for each in calls]
        message["tool_calls"] = [{"id": each.id, "function": name} for each, name in zip(calls, named, strict=True)]
    return {"message": message}


async def _load(service: Service, request: Request, body: CommonFields, opened: OpenedModel, fill: Fill) -> Response:
    """No prompt loads the model, or lets it go."""
    if body.kept == 0:
        await asyncio.wrap_future(service.engine.keep(opened.ref, 0))
        reason = "unload"
    else:
        await begun(request, [service.preload(opened, body.kept)])
        reason = "load"
    return JSONResponse(
        {"model": body.model, "created_at": _now()} | fill("", "", ()) | {"done": True, "done_reason": reason}
    )


async def _answer(request: Request, body: CommonFields, reply: Reply, fill: Fill) -> Response:
    if body.stream is False:
        (answer,) = await whole(request, [reply])
        return JSONResponse(_closing(body.model, fill(answer.text, answer.reasoning, answer.calls), answer.ended))
    await begun(request, [reply])
    return Stream(_lines(body.model, merged([reply]), fill), "application/x-ndjson", [reply])


async def _lines(name: str, events: AsyncIterator[tuple[int, AnswerEvent]], fill: Fill) -> AsyncIterator[bytes]:
    try:
        async for _, each in events:
            if isinstance(each, Ended):
                yield line(_closing(name, fill("", "", ()), each))
                continue
            if isinstance(each, Called):
                filled = fill("", "", (each,))
            else:
                filled = fill("", each.text, ()) if each.reasoning else fill(each.text, "", ())
            yield line({"model": name, "created_at": _now()} | filled | {"done": False})
    except MoecliError as error:
        yield line({"error": explained(error)})


def _closing(name: str, filled: dict[str, Any], ended: Ended) -> dict[str, Any]:
    """The last line, or the only one; durations are nanoseconds."""
    total = ended.load_s + ended.prompt_s + ended.decode_s
    return (
        {"model": name, "created_at": _now()}
        | filled
        | {
            "done": True,
            "done_reason": ended.reason,
            "total_duration": _nanoseconds(total),
            "load_duration": _nanoseconds(ended.load_s),
            "prompt_eval_count": ended.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(ended.prompt_s),
            "eval_count": ended.tokens,
            "eval_duration": _nanoseconds(ended.decode_s),
        }
    )


async def _tags(service: Service, request: Request) -> Response:
    return JSONResponse({"models": [_tag(each) for each in await service.all()]})


def _tag(model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": _time(model.changed),
        "size": model.bytes,
        "digest": _digest(model.name, model.changed, model.bytes),
        "details": _details("", "", model.format),
    }


async def _show(service: Service, request: Request) -> Response:
    body = await read(request, ModelRequest)
    opened = await service.open(body.word)
    spec, counts = opened.spec, params.count(opened.spec)
    size, format = f"{figure(counts.total / 1e9)}B", opened.model.dtypes[0]
    info: dict[str, Any] = {
        "general.architecture": spec.family,
        "general.parameter_count": counts.total,
        "general.active_parameter_count": counts.active,
        f"{spec.family}.context_length": spec.context_length,
        f"{spec.family}.embedding_length": spec.hidden_size,
        f"{spec.family}.block_count": len(spec.layers),
    }
    for _, mixture in list(spec.mixtures)[:1]:
        info[f"{spec.family}.expert_count"] = mixture.router.experts
        info[f"{spec.family}.expert_used_count"] = mixture.router.top_k
    template = opened.tokenizer.chat_template
    return JSONResponse(
        {
            "modelfile": f"FROM {opened.name}\n",
            "parameters": "",
            "template": template.source if template else "",
            "details": _details(spec.family, size, format),
            "model_info": info,
            "capabilities": await asyncio.to_thread(_capabilities, opened),
        }
    )


def _capabilities(opened: OpenedModel) -> list[str]:
    tokenizer = opened.tokenizer
    return [
        "completion",
        *(["tools"] if calls_tools(tokenizer) else []),
        *(["thinking"] if reasons(tokenizer) else []),
    ]


async def _ps(service: Service, request: Request) -> Response:
    residents, models = service.engine.residents, []
    for resident in residents:
        loaded, plan = resident.loaded, resident.loaded.plan
        left = residents.expires_s(resident)
        until = _FOREVER if math.isinf(left) else timedelta(seconds=max(0.0, min(left, _FOREVER.total_seconds())))
        models.append(
            {
                "name": loaded.name,
                "model": loaded.name,
                "size": plan.ram.total - plan.ram.process + plan.device.total,
                "size_vram": plan.device.total,
                "digest": _digest(loaded.name, 0, 0),
                "details": _details(loaded.opened.spec.family, "", loaded.dtype),
                "expires_at": (datetime.now(timezone.utc) + until).isoformat(),
                "context_length": loaded.cache.capacity,
            }
        )
    return JSONResponse({"models": models})


async def _version(request: Request) -> Response:
    return JSONResponse({"version": __version__})


async def _pull(service: Service, request: Request) -> Response:
    """A model that is here is there at once; none is fetched."""
    body = await read(request, ModelRequest)
    try:
        await service.find(body.word)
    except ModelNotFound as error:
        raise Refused(403, f"{error.message}, and a server fetches none", "type moecli pull MODEL in a shell") from None
    return Response(line({"status": "success"}), media_type="application/x-ndjson")


def _details(family: str, size: str, format: str) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "moecli",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": size,
        "quantization_level": format,
    }


def _digest(*facts: object) -> str:
    """What tells two models apart, in the form of a digest; not one of their contents."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
