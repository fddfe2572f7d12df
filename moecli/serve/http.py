"""HTTP that all APIs share: bodies that are read within bounds, errors in each API's form, clients that leave."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from moecli.errors import ModelNotFound, MoecliError, NotEnoughMemory, TextError, UsageError, json_object, printable
from moecli.serve.engine import Busy
from moecli.serve.reply import Reply

_LARGEST_BODY = 16 * 2**20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_OPEN = ("/", "/health")  # to those without the key
T = TypeVar("T")
M = TypeVar("M", bound="Body")


class Refused(MoecliError):
    """A request that is not answered, and with which status."""

    def __init__(self, status: int, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.status = status


class ClientGone(Exception):
    """Nobody is there to be answered."""


class Body(BaseModel):
    """A request: fields that are not declared are ignored."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, protected_namespaces=())


async def read(request: Request, kind: type[M]) -> M:
    """The request's JSON body, whatever its content type says. Refused if it is too large or not of that kind."""
    content = bytearray()
    too_large = Refused(413, f"the request is larger than {_LARGEST_BODY >> 20} MiB")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > _LARGEST_BODY:
        raise too_large
    async for part in request.stream():
        content += part
        if len(content) > _LARGEST_BODY:
            raise too_large
    value = json_object(bytes(content), lambda problem: Refused(400, f"the body {problem}"))
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Refused(400, printable(f"{place}: {first['msg']}" if place else first["msg"], 400)) from None


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is ended, and ClientGone raised, if the client leaves before. The body has been read."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


class Stream(StreamingResponse):
    """Replies as they come. However it ends, nobody waits for them afterwards."""

    def __init__(self, content: AsyncIterator[bytes], media_type: str, replies: Sequence[Reply]) -> None:
        super().__init__(content, media_type=media_type, headers={"cache-control": "no-cache"})
        self._replies = replies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            for reply in self._replies:
                reply.abandon()


def event(data: object, name: str | None = None) -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def line(data: object) -> bytes:
    """One line of JSON."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def status_of(error: MoecliError) -> int:
    """The HTTP status of a failure."""
    if isinstance(error, Refused):
        return error.status
    if isinstance(error, Busy | NotEnoughMemory):
        return 503
    if isinstance(error, ModelNotFound):
        return 404
    return 400 if isinstance(error, UsageError | TextError) else 500


def told(path: str, status: int, message: str) -> dict[str, Any]:
    """A failure in the form of the API to which `path` belongs."""
    kinds = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "api_error")
    if path.startswith("/api/"):
        return {"error": message}
    if path.startswith("/v1/messages"):
        return {"type": "error", "error": {"type": "overloaded_error" if status == 503 else kind, "message": message}}
    code = {404: "model_not_found", 401: "invalid_api_key"}.get(status)
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def explained(error: MoecliError) -> str:
    """Message and hint in one sentence."""
    return f"{error.message}: {error.hint}" if error.hint else error.message


async def failed(request: Request, error: Exception) -> Response:
    """The answer to a request that failed."""
    if isinstance(error, ClientGone | ClientDisconnect):
        return Response(status_code=499)
    if isinstance(error, MoecliError):
        status, message = status_of(error), explained(error)
    elif isinstance(error, HTTPException):
        status, message = error.status_code, f"{request.method} {request.url.path}: {error.detail.lower()}"
    else:
        status, message = 500, "the server failed; its stderr says more"
    headers = {"retry-after": "1"} if status == 503 else {}
    return JSONResponse(told(request.url.path, status, printable(message, 2000)), status, headers)


class Guard:
    """Lets in whom the server is for: with the key, if there is one; no page of another origin, by whatever name."""

    def __init__(self, app: ASGIApp, key: str | None, loopback: bool) -> None:
        """`loopback`: the server listens to this machine alone, so that only its own names are meant."""
        self._app, self._key, self._loopback = app, key, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            response = JSONResponse(told(scope["path"], *refusal), refusal[0])
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        try:
            named = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            named = ""
        if self._loopback and named not in _LOOPBACK:  # a name that a stranger lets point here
            return 403, f"this server answers to {', '.join(_LOOPBACK)}, not to '{printable(named, 80)}'"
        origin = headers.get("origin")
        if origin is not None and origin != f"{scope['scheme']}://{host}":
            return 403, f"pages of {printable(origin, 80)} may not use this server"
        if self._key is not None and scope["path"] not in _OPEN and not self._has_key(headers):
            return 401, "this server wants a key: Authorization: Bearer KEY"
        return None

    def _has_key(self, headers: Headers) -> bool:
        bearer = headers.get("authorization", "")
        given = bearer[7:] if bearer[:7].lower() == "bearer " else headers.get("x-api-key", "")
        return hmac.compare_digest(given.encode(), (self._key or "").encode())
