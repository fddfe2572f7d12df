"""What commands that run a model share: options, their check, and the way from MODEL to its folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from moecli.cli import options, pull
from moecli.errors import UsageError
from moecli.experts.policies import POLICIES
from moecli.formats import FORMATS
from moecli.library import resolve as hub
from moecli.library import resolve_local as local
from moecli.output import terminal

SLOW = 1.0  # tokens per second: below it, the user is asked first

Policy = Annotated[str, typer.Option("--policy", help=f"Which expert leaves when RAM is full: {', '.join(POLICIES)}.")]
Device = Annotated[str, typer.Option("--device", help="auto (a GPU if there is one), cpu, cuda, cuda:N.")]
Vram = Annotated[
    str | None,
    typer.Option("--vram", metavar="SIZE", help="GPU memory budget; default: what is free now.", show_default=False),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="Same seed, same text.", show_default=False, callback=options.at_least(0)),
]


def check(dtype: str, policy: str, device: str) -> None:
    """UsageError for a word that is not known."""
    if dtype != "auto" and dtype not in FORMATS:
        raise UsageError(f"--dtype {dtype} is not known", f"it takes auto, {', '.join(FORMATS)}")
    if policy not in POLICIES:
        raise UsageError(f"--policy {policy} is not known", f"it takes {', '.join(POLICIES)}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
        raise UsageError(f"--device {device} is not known", "it takes auto, cpu, cuda or cuda:N")


def find(model: str, dtype: str, offline: bool, quiet: bool) -> tuple[str, Path]:
    """The name and the folder of the weights that MODEL means; fetching them may be offered."""
    source = local.resolve(model, dtype)
    folder = (None if offline else pull.offer(source, quiet)) or hub.require_folder(source)
    if source.packed and not hub.is_path(model) and source.name.casefold() != model.casefold() and not quiet:
        terminal.say(f"using {source.name}, packed from {model}")
    return source.name, folder
