"""The moecli program: its commands, and the one place where failures become messages and exit codes."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import threading
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.main import get_command

from moecli import __version__, settings
from moecli.cli import (
    bench,
    compare,
    completion,
    doctor,
    help,
    inspect,
    list,
    memory,
    pack,
    perplexity,
    program,
    pull,
    rm,
    run,
    score,
    serve,
    verify,
)
from moecli.errors import MoecliError, NotEnoughMemory, UsageError
from moecli.output import terminal

PROGRAM = "moecli"
EXAMPLES = """
moecli run tiny "The sea"
moecli memory mixtral
moecli help run
"""


class Program(program.Group):
    """Every command, in the order of the help."""

    table = {  # noqa: RUF012  # read only
        "run": ("Use a model", run.run, run.EXAMPLES),
        "inspect": ("Use a model", inspect.inspect, inspect.EXAMPLES),
        "memory": ("Use a model", memory.memory, memory.EXAMPLES),
        "score": ("Use a model", score.score, score.EXAMPLES),
        "perplexity": ("Use a model", perplexity.perplexity, perplexity.EXAMPLES),
        "compare": ("Use a model", compare.compare, compare.EXAMPLES),
        "serve": ("Use a model", serve.serve, serve.EXAMPLES),
        "bench": ("Use a model", bench.bench, bench.EXAMPLES),
        "pull": ("Models on this machine", pull.pull, pull.EXAMPLES),
        "pack": ("Models on this machine", pack.pack, pack.EXAMPLES),
        "list": ("Models on this machine", list.list_models, list.EXAMPLES),
        "verify": ("Models on this machine", verify.verify, verify.EXAMPLES),
        "rm": ("Models on this machine", rm.rm, rm.EXAMPLES),
        "doctor": ("This program", doctor.doctor, doctor.EXAMPLES),
        "completion": ("This program", completion.completion, completion.EXAMPLES),
        "help": ("This program", help.help_of, help.EXAMPLES),
    }


app = typer.Typer(
    name=PROGRAM,
    cls=Program,
    help="Run Mixture-of-Experts models on machines too small for them, and see what the router does.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            torch = f" (torch {version('torch')})"
        except PackageNotFoundError:
            torch = ""
        terminal.write(f"moecli {__version__}{torch}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Run Mixture-of-Experts models on machines too small for them, and see what the router does."""


def main() -> None:
    """The entry point. Explained failures end in one line; anything else is a bug and shows itself.

    Typer itself answers Ctrl-C (130) and a reader that has gone (quietly, 1).
    """
    try:
        dispatch()
    except SystemExit as end:
        if isinstance(end.code, int) and end.code:
            _abandon_threads(end.code)
        raise


def _abandon_threads(code: int) -> None:
    """Ends a program that failed at once where threads still read or write for it, which nobody waits for.

    Python would take its libraries apart under them; a `pull` that was interrupted was seen to abort then.
    """
    if any(thread.daemon for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)


def dispatch() -> None:
    """One command as it was typed; SystemExit where it fails."""
    if sys.argv[1:2] == ["__complete"]:
        completion.answer(get_command(app), sys.argv[2:])
        return
    terminal.prepare_streams()
    settings.let_threads_sleep()
    from moecli.output import log

    preset: Sequence[str] = ()
    try:
        log.start(settings.log_level())
        if sys.argv[1:] and not sys.argv[1].startswith("-"):
            preset = program.preset(get_command(app), sys.argv[1], settings.presets())
            sys.argv[2:2] = preset  # where everybody looks for what was typed
        app(prog_name=PROGRAM)
    except RuntimeError as error:
        if not _ran_out_of_device_memory(error):
            raise
        from moecli.engine.shortage import LESS_OF_THE_DEVICE

        sys.exit(terminal.report(NotEnoughMemory("the device ran out of memory", LESS_OF_THE_DEVICE)))
    except MoecliError as error:
        if preset and isinstance(error, UsageError):
            terminal.say(f"note: {settings.config()} adds {shlex.join(preset)}")
        sys.exit(terminal.report(error))


def _ran_out_of_device_memory(error: RuntimeError) -> bool:
    """Where nothing could be done again with less on it: `run` goes on by itself."""
    if "torch" not in sys.modules:
        return False
    from moecli.engine.device import ran_out

    return ran_out(error)
