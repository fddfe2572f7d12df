"""What commands that run a model share: options, their check, and the way from MODEL to its weights."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from moecli import settings
from moecli.cli import options
from moecli.errors import UsageError
from moecli.experts.policies import POLICIES
from moecli.formats import check_dtype
from moecli.library.resolve import Kind, ModelRef, resolve
from moecli.output import terminal

SLOW = 1.0  # tokens per second: below it, the user is asked first

Policy = Annotated[
    str, typer.Option("--policy", help=f"Replacement policy of the experts in memory: {', '.join(POLICIES)}.")
]
Device = Annotated[
    str, typer.Option("--device", help="Compute device: auto (a GPU if there is one), cpu, cuda, cuda:N.")
]
Vram = Annotated[
    str | None,
    typer.Option("--vram", metavar="SIZE", help="GPU memory budget; default: what is free now.", show_default=False),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        help="Random seed; the same seed gives the same text.",
        show_default=False,
        callback=options.at_least(0),
    ),
]


def check(dtype: str, policy: str, device: str) -> None:
    """UsageError for a word that is not known."""
    check_dtype(dtype)
    if policy not in POLICIES:
        raise UsageError.unknown("--policy", policy, ", ".join(POLICIES))
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
        raise UsageError.unknown("--device", device, "auto, cpu, cuda or cuda:N")


def behind_stdin(typed: str) -> str:
    """What is piped in, a blank line, and what was typed; either may be missing, and `-` is what is piped in."""
    typed = "" if typed == "-" else typed
    return "\n\n".join(part for part in (terminal.read_stdin().strip("\n"), terminal.clean(typed)) if part)


def find(
    model: str, dtype: str, ram: str | None, context: int | None, offline: bool, quiet: bool
) -> tuple[ModelRef, bool]:
    """What MODEL means, its weights on this machine, and whether somebody has just agreed to run it."""
    found = resolve(model, dtype=dtype)
    ref = with_weights(found, dtype, ram, context, offline, quiet)
    if ref.kind is Kind.STORE and not ref.by_path and ref.name.casefold() != model.casefold() and not quiet:
        terminal.say(f"using {ref.name}, packed from {model}")
    return ref, found.folder is None


def with_weights(
    ref: ModelRef, dtype: str, ram: str | None, context: int | None, offline: bool, quiet: bool
) -> ModelRef:
    """The same model, on this machine: fetched, if that is wanted. ModelNotFound if it is not."""
    if ref.folder is not None:
        return ref
    if ref.repo is None:
        raise ref.missing()
    from moecli.library import advice

    known = advice.advice_on(ref, dtype, ram, context)
    if offline or settings.offline() or not terminal.can_ask() or (known is not None and not known.possible):
        raise advice.missing(ref, known)
    from moecli.cli import fetching

    return fetching.for_run(ref, known, dtype, ram, context, quiet)
