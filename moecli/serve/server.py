"""The server: all routes behind one guard in a thread of its own, and signals that end it gracefully."""

from __future__ import annotations

import ipaddress
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from moecli.errors import MoecliError
from moecli.serve import anthropic, ollama, openai
from moecli.serve.engine import Engine
from moecli.serve.http import ClientGone, Guard, failed
from moecli.serve.models import ServedModels
from moecli.serve.route import Route, described
from moecli.serve.service import Service

_GRACE = 8  # seconds that answers under way have once the server is to end; Docker kills after 10


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where the server listens, and who may use it."""

    host: str
    port: int  # 0: any free one
    key: str | None

    @property
    def loopback(self) -> bool:
        """Whether it listens to this machine alone."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def listen(options: ServerOptions) -> socket.socket:
    """The socket on which the server will be reached. MoecliError if there can be none."""
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((options.host, options.port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        shown = f"{options.host}:{options.port}"
        hint = "--port 0 takes any free one; is Ollama or another moecli there?"
        raise MoecliError(f"cannot listen on {shown}: {getattr(error, 'strerror', None) or error}", hint) from error


def url_of(listening: socket.socket) -> str:
    """The address to type."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    engine: Engine, models: ServedModels, listening: socket.socket, options: ServerOptions, ready: Callable[[], None]
) -> None:
    """Answer until SIGTERM or SIGINT, which let answers under way come to their end; a second one does not wait.

    The calling thread, which must be the main one, is the engine's. `ready` is called once the server listens.
    """
    config = uvicorn.Config(
        application(Service(engine, models), options),
        http="h11",
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE,
    )
    server = uvicorn.Server(config)

    def answer() -> None:
        try:
            server.run(sockets=[listening])
        finally:
            engine.end()

    def on_signal(number: int, frame: Any) -> None:
        if server.should_exit:
            raise KeyboardInterrupt
        server.should_exit = True
        engine.stop()

    thread = threading.Thread(target=answer, name="server", daemon=True)
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        thread.start()
        ready()
        engine.run()
        thread.join()
    finally:
        server.should_exit = server.force_exit = True
        for number, handler in before.items():
            signal.signal(number, handler)


def application(service: Service, options: ServerOptions) -> Starlette:
    """Everything that is answered, as an ASGI application."""
    own = [
        Route("GET", "/", _hello),
        Route("GET", "/health", _health),
        Route("GET", "/metrics", lambda request: _metrics(service)),
    ]
    routes = [*own, *anthropic.routes(service), *openai.routes(service), *ollama.routes(service)]
    document = described(routes)

    async def openapi(request: Request) -> Response:
        return JSONResponse(document)

    handlers: dict[Any, Any] = dict.fromkeys(
        (MoecliError, ClientGone, ClientDisconnect, HTTPException, Exception), failed
    )
    return Starlette(
        routes=[each.mounted() for each in [*routes, Route("GET", "/openapi.json", openapi)]],
        middleware=[Middleware(Guard, key=options.key, loopback=options.loopback)],
        exception_handlers=handlers,
    )


async def _hello(request: Request) -> Response:
    return PlainTextResponse("moecli is running")


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _metrics(service: Service) -> Response:
    engine = service.engine
    statistics = [model.loaded.decoder.experts.statistics for model in engine.residents]
    hits, misses = sum(each.hits for each in statistics), sum(each.misses for each in statistics)
    experts = hits, misses, sum(each.bytes_read for each in statistics)
    text = engine.metrics.text(engine.running, engine.waiting, experts)
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")
