"""`moecli serve`: models over HTTP, for the clients of OpenAI, Ollama and Anthropic."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from moecli import settings
from moecli.cli import options, running
from moecli.errors import MoecliError, UsageError
from moecli.output import loading, terminal

EXAMPLES = """Examples:

  moecli serve

  moecli serve mixtral:q4 --ram 12GiB --ctx 4096

  moecli serve --host 0.0.0.0 --port 8080 --api-key "$(cat key)"

  curl http://127.0.0.1:11434/api/generate -d '{"model": "tiny", "prompt": "The sea"}'
"""

_SERVER = "Server"


@options.with_options_of_fields
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL...",
            help="What is served, as `run` takes it; without any, every model on this machine.",
            autocompletion=options.complete_model,
            show_default=False,
        ),
    ] = None,
    *,
    host: Annotated[
        str, options.option(metavar="ADDRESS", panel=_SERVER, default=True, help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        options.option(
            metavar="N", panel=_SERVER, default=True, check=options.at_least(0),
            help="Port to listen on, by default that of Ollama; 0 takes any free one.",
        ),
    ] = 11434,
    api_key: Annotated[
        str | None,
        options.option(
            "--api-key", metavar="KEY", panel=_SERVER, help="Answer only requests with this key; also MOECLI_API_KEY."
        ),
    ] = None,
    parallel: Annotated[
        int | None,
        options.option(
            metavar="N", panel=_SERVER, check=options.at_least(1),
            help="Texts generated side by side; default: up to 8, fewer where their caches would take experts' place.",
        ),
    ] = None,
    queue: Annotated[
        int,
        options.option(
            metavar="N", panel=_SERVER, default=True, check=options.at_least(1),
            help="Requests that may wait; more are refused.",
        ),
    ] = 64,
    keep_alive: Annotated[
        str,
        options.option(
            "--keep-alive", metavar="TIME", panel=_SERVER, default=True,
            help="How long a model stays in memory after its last answer: 5m, 1h30m, 0, -1 for ever.",
        ),
    ] = "5m",
    session: running.Session = None,
    placing: running.Placing = running.Placing(),
    offline: options.Offline = False,
    yes: options.Yes = False,
    quiet: options.Quiet = False,
    verbose: options.Log = False,
    no_color: options.NoColor = False,
) -> None:  # fmt: skip
    """Answer the clients of OpenAI, Ollama and Anthropic on this machine.

    A model is loaded when it is first asked for, beside others while they fit. Requests for one are generated side by
    side, each expert read once for all; one that begins like an earlier one reads only what is new. No answer depends
    on the others.
    """
    placing = placing.checked()
    options.check_output("--session", session)
    if session is not None and len(models or ()) != 1:
        raise UsageError("--session is of one model", "moecli serve MODEL --session FILE")
    _require()
    with terminal.status("starting ...", quiet):
        from moecli.engine.sessions import open_session
        from moecli.serve.engine import Engine, EngineOptions
        from moecli.serve.http import Refused
        from moecli.serve.models import ServedModels
        from moecli.serve.server import ServerOptions, listen, url_of
        from moecli.serve.server import serve as answer
        from moecli.serve.service import keep_alive_seconds

    try:
        stays = keep_alive_seconds(keep_alive)
    except Refused as error:
        raise UsageError(f"--{error.message.replace('_', '-')}", error.hint) from error
    refs = [placing.find(each, offline, quiet, yes)[0] for each in models or ()]
    where = ServerOptions(host, port, api_key or settings.read("MOECLI_API_KEY"))
    listening = listen(where)
    if not where.loopback and where.key is None:
        terminal.say("note: whoever reaches this machine can use the server: --api-key KEY asks for one")

    def ready() -> None:
        terminal.write(f"{url_of(listening)}\n")
        if not quiet:
            terminal.say("answers the clients of OpenAI (/v1), Ollama (/api) and Anthropic; Ctrl-C ends it")

    kept = None if session is None else partial(open_session, path=session, warn=_warn, failed=terminal.report)
    engine = Engine(
        EngineOptions(placing.load_options(placing.dtype), parallel, queue, stays, kept),
        partial(loading.progress, quiet=quiet),
    )
    answer(engine, ServedModels(refs, placing.dtype), listening, where, ready)


def _warn(text: str) -> None:
    terminal.say(f"warning: {text}")


def _require() -> None:
    """MoecliError where the extra is not installed."""
    try:
        import pydantic  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        hint = 'pip install "moecli[serve]"'
        raise MoecliError(f"a server takes starlette, uvicorn and pydantic: {error}", hint) from error
