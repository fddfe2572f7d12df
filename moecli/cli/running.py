"""What commands that run a model share: options, their check, and the way from MODEL to its weights."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from moecli import settings
from moecli.cli import options
from moecli.errors import UsageError
from moecli.experts.policies import POLICIES
from moecli.formats import check_dtype
from moecli.output import terminal

if TYPE_CHECKING:
    from moecli.library.resolve import ModelRef

SLOW = 1.0  # tokens per second: below it, the user is asked first

Policy = Annotated[
    str,
    options.option(
        "--policy", metavar="NAME", panel=options.MEMORY, default=True, values=tuple(POLICIES),
        help=f"Which expert leaves when memory is full: {', '.join(POLICIES)}. Matters where experts come from disk.",
    ),
]  # fmt: skip
Device = Annotated[
    str,
    options.option(
        "--device", metavar="DEVICE", panel=options.MEMORY, default=True, values=("auto", "cpu", "cuda"),
        help="Compute device: auto (a GPU if there is one), cpu, cuda, cuda:N.",
    ),
]  # fmt: skip
Seed = Annotated[
    int | None,
    options.option(
        "--seed", metavar="N", help="Random seed; the same seed gives the same text.", check=options.at_least(0)
    ),
]
Session = Annotated[
    Path | None,
    options.option(
        "--session", metavar="FILE",
        help="Keep what is read in this file; a prompt that begins alike later reads only what is new.",
    ),
]  # fmt: skip
ExpertCapacity = Annotated[
    int | None,
    options.option(
        "--expert-capacity", metavar="N", check=options.at_least(0),
        help="Tokens that an expert takes in one pass, of models that bound it (Switch); 0: all. Default: the model's.",
    ),
]  # fmt: skip


def check(dtype: str, policy: str, device: str) -> None:
    """UsageError for a word that is not known."""
    check_dtype(dtype)
    if policy not in POLICIES:
        raise UsageError.unknown("--policy", policy, ", ".join(POLICIES))
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
        raise UsageError.unknown("--device", device, "auto, cpu, cuda or cuda:N")


def behind_stdin(typed: str, read: str = "") -> str:
    """What is piped in, what was read, what was typed, blank lines between; `-` typed is what is piped in."""
    typed = "" if typed == "-" else typed
    parts = (terminal.read_stdin().strip("\n"), read.strip("\n"), terminal.clean(typed))
    return "\n\n".join(part for part in parts if part)


def find(
    model: str,
    dtype: str,
    ram: str | None,
    context: int | None,
    offline: bool,
    quiet: bool,
    yes: bool,
    tokenizer: str | None = None,
) -> tuple[ModelRef, bool]:
    """What MODEL means, its weights on this machine, and whether somebody has just agreed to run it.

    `yes`: that is agreed to already. `tokenizer`: what --tokenizer names.
    """
    from moecli.library.resolve import Kind, resolve

    found = with_tokenizer(resolve(model, dtype=dtype), tokenizer, offline)
    ref = with_weights(found, found.dtype, ram, context, offline, quiet, yes)
    if ref.kind is Kind.STORE and not ref.by_path and ref.name.casefold() != model.casefold() and not quiet:
        terminal.say(f"using {ref.name}, packed from {model}")
    return replace(ref, dtype=found.dtype), found.folder is None


def with_tokenizer(ref: ModelRef, name: str | None, offline: bool = False, check: bool = False) -> ModelRef:
    """The same model with the tokenizer that --tokenizer names, if it names one; `check`: it is tried at once."""
    if name is None:
        return ref
    from moecli.library import tokenizers

    path = tokenizers.find(name, offline)
    if check:
        tokenizers.check(path)
    return replace(ref, tokenizer=path)


def with_weights(
    ref: ModelRef, dtype: str, ram: str | None, context: int | None, offline: bool, quiet: bool, yes: bool = False
) -> ModelRef:
    """The same model, on this machine: fetched, if that is wanted. ModelNotFound if it is not."""
    if ref.folder is not None:
        return ref
    if ref.repo is None:
        raise ref.missing()
    from moecli.library import advice

    known = advice.advice_on(ref, dtype, ram, context)
    if offline or settings.offline() or not (yes or terminal.can_ask()) or (known is not None and not known.possible):
        raise advice.missing(ref, known)
    from moecli.cli import fetching

    return fetching.for_run(ref, known, dtype, ram, context, quiet, yes)
