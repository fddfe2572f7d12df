"""The moecli program: its commands, and the one place where failures become messages and exit codes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from moecli import __version__, settings
from moecli.cli import bench, completion, doctor, inspect, list, memory, pack, pull, rm, run, verify
from moecli.errors import MoecliError
from moecli.output import log, terminal

PROGRAM = "moecli"
_EPILOG = "Environment: " + "; ".join(f"{v.name}: {v.meaning}" for v in settings.VARIABLES) + "."

app = typer.Typer(
    name=PROGRAM,
    help="Run Mixture-of-Experts models on machines too small for them, and see what the router does.",
    epilog=_EPILOG,
    no_args_is_help=True,
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


app.command("run", epilog=run.EXAMPLES)(run.run)
app.command("inspect", epilog=inspect.EXAMPLES)(inspect.inspect)
app.command("pull", epilog=pull.EXAMPLES)(pull.pull)
app.command("pack", epilog=pack.EXAMPLES)(pack.pack)
app.command("list", epilog=list.EXAMPLES)(list.list_models)
app.command("rm", epilog=rm.EXAMPLES)(rm.rm)
app.command("verify", epilog=verify.EXAMPLES)(verify.verify)
app.command("memory", epilog=memory.EXAMPLES)(memory.memory)
app.command("bench", epilog=bench.EXAMPLES)(bench.bench)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)
app.command("completion", epilog=completion.EXAMPLES)(completion.completion)


def main() -> None:
    """The entry point. Explained failures end in one line; anything else is a bug and shows itself.

    Typer itself answers wrong usage (2), Ctrl-C (130) and a reader that has gone (quietly, 1).
    """
    terminal.prepare_streams()
    settings.let_threads_sleep()
    try:
        log.start()
        app(prog_name=PROGRAM)
    except MoecliError as error:
        sys.exit(terminal.report(error))
