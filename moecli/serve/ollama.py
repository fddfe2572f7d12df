"""The API of Ollama: /api/generate, /api/chat, and what its clients ask about models."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from moecli import __version__
from moecli.engine.loaded import OpenedModel
from moecli.engine.sampling import SamplingOptions
from moecli.errors import ModelNotFound, MoecliError
from moecli.model import params
from moecli.serve.http import Body, Refused, Stream, explained, line, read
from moecli.serve.models import ServedModel
from moecli.serve.parts import TopK, Unit, nucleus, sampled_from
from moecli.serve.reply import Ended, Piece, Reply
from moecli.serve.route import Route
from moecli.serve.service import AnswerOptions, Service, begun, keep_alive_seconds, merged, whole
from moecli.text.chat import Message
from moecli.units import figure

_FOREVER = timedelta(days=365 * 100)  # how a time is told that never comes
Fill = Callable[[str], dict[str, Any]]  # text in the form of an endpoint


class Options(Body):
    """How an answer is made; others of Ollama's options are ignored, num_ctx among them: --ctx sets it."""

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: TopK | None = None
    top_p: Unit | None = None
    min_p: Unit | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    seed: int | None = None
    num_predict: int | None = None  # negative: as many as fit
    stop: str | list[str] | None = None


class CommonFields(Body):
    """What both endpoints take."""

    model: str
    stream: bool | None = True
    options: Options | None = None
    keep_alive: str | float | None = None
    format: Any = None
    think: Any = None

    def refuse(self) -> None:
        """Refused for what would change the answer and is not done here."""
        if self.format:
            raise Refused(400, "format is not supported: answers are plain text")
        if self.think:
            raise Refused(400, "think is not supported")

    @property
    def kept(self) -> float | None:
        return None if self.keep_alive is None else keep_alive_seconds(self.keep_alive)

    def answer_options(self) -> AnswerOptions:
        """As the options say it."""
        options = self.options or Options()
        stops = [options.stop] if isinstance(options.stop, str) else options.stop or ()
        sampling = SamplingOptions(
            options.temperature, sampled_from(options.top_k), nucleus(options.top_p), options.min_p,
            options.repeat_penalty,
        )  # fmt: skip
        most = options.num_predict if options.num_predict and options.num_predict > 0 else None
        seed = None if options.seed is None or options.seed < 0 else options.seed
        return AnswerOptions(sampling, seed, most, stops, keep_alive=self.kept)


class GenerateRequest(CommonFields):
    """POST /api/generate."""

    prompt: str | None = ""
    system: str | None = None
    raw: bool | None = False
    suffix: str | None = None
    template: str | None = None
    images: list[Any] | None = None

    def refuse(self) -> None:
        super().refuse()
        for name in ("suffix", "template", "images"):
            if getattr(self, name):
                raise Refused(400, f"{name} is not supported")


class ChatMessage(Body):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str | None = ""
    images: list[Any] | None = None


class ChatRequest(CommonFields):
    """POST /api/chat."""

    messages: list[ChatMessage] | None = None
    tools: list[Any] | None = None

    def refuse(self) -> None:
        super().refuse()
        if self.tools:
            raise Refused(400, "tools are not supported")
        if any(each.images for each in self.messages or ()):
            raise Refused(400, "images are not supported")


class ModelRequest(Body):
    """A model by either of the names that the field has had."""

    model: str | None = None
    name: str | None = None

    @property
    def word(self) -> str:
        if not (word := self.model or self.name):
            raise Refused(400, "model is missing")
        return word


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
        return await _load(service, request, body, opened, lambda text: {"response": text})
    if body.raw:
        prompt, continues = await service.text(opened, body.prompt)
    else:
        system = [Message("system", body.system)] if body.system else []
        prompt, continues = await service.chat(opened, [*system, Message("user", body.prompt)])
    reply = service.submit(opened, prompt, continues, body.answer_options())
    return await _answer(request, body, reply, lambda text: {"response": text})


async def _chat(service: Service, request: Request) -> Response:
    body = await read(request, ChatRequest)
    body.refuse()
    opened = await service.open(body.model)

    def fill(text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    if not body.messages:
        return await _load(service, request, body, opened, fill)
    messages = [Message(each.role, each.content or "") for each in body.messages]
    prompt, continues = await service.chat(opened, messages)
    return await _answer(request, body, service.submit(opened, prompt, continues, body.answer_options()), fill)


async def _load(service: Service, request: Request, body: CommonFields, opened: OpenedModel, fill: Fill) -> Response:
    """No prompt loads the model, or lets it go."""
    if body.kept == 0:
        await asyncio.wrap_future(service.engine.keep(opened.ref, 0))
        reason = "unload"
    else:
        await begun(request, [service.preload(opened, body.kept)])
        reason = "load"
    return JSONResponse({"model": body.model, "created_at": _now()} | fill("") | {"done": True, "done_reason": reason})


async def _answer(request: Request, body: CommonFields, reply: Reply, fill: Fill) -> Response:
    if body.stream is False:
        (answer,) = await whole(request, [reply])
        return JSONResponse(_closing(body.model, fill(answer.text), answer.ended))
    await begun(request, [reply])
    return Stream(_lines(body.model, merged([reply]), fill), "application/x-ndjson", [reply])


async def _lines(name: str, events: AsyncIterator[tuple[int, Piece | Ended]], fill: Fill) -> AsyncIterator[bytes]:
    try:
        async for _, each in events:
            if isinstance(each, Piece):
                yield line({"model": name, "created_at": _now()} | fill(each.text) | {"done": False})
            else:
                yield line(_closing(name, fill(""), each))
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
            "capabilities": ["completion"],
        }
    )


async def _ps(service: Service, request: Request) -> Response:
    engine, models = service.engine, []
    if (resident := engine.resident) is not None:
        loaded, plan = resident.loaded, resident.loaded.plan
        left = engine.expires_s
        until = _FOREVER if math.isinf(left) else timedelta(seconds=max(0.0, min(left, _FOREVER.total_seconds())))
        models.append(
            {
                "name": loaded.name,
                "model": loaded.name,
                "size": plan.ram.total + plan.device.total,
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
