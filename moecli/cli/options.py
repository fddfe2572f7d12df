"""Options that mean the same in every command, declared once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from moecli.errors import UsageError
from moecli.store import filesystem


def complete_model(incomplete: str) -> Iterator[str]:
    """Aliases, then what is on this machine; touches no network and imports nothing heavy."""
    from moecli.hub import cache as hub_cache
    from moecli.library import stores
    from moecli.model import catalog

    names = [catalog.BUILT_IN, *(entry.alias for entry in catalog.known())]
    names += [store.name for store in stores.local_stores()]
    names += [model.repo for model in hub_cache.local_models()]
    return (name for name in dict.fromkeys(names) if name.startswith(incomplete) and name.isprintable())


def at_least(least: int) -> Callable[[typer.CallbackParam, int | None], int | None]:
    """Refuse smaller numbers, naming the value; Typer's own range check does not."""

    def check(parameter: typer.CallbackParam, value: int | None) -> int | None:
        if value is not None and value < least:
            raise UsageError(f"{parameter.opts[0]} {value} is out of range", f"it takes {least} or more")
        return value

    return check


def check_output(option: str, file: Path | None) -> None:
    """UsageError or DiskError for a file that cannot be written, before anything takes long."""
    if file is None:
        return
    from moecli.hub.cache import is_folder

    if is_folder(file):
        raise UsageError(f"{option} {file} is a folder", "name a file in it")
    if not is_folder(Path(os.path.realpath(file)).parent):
        raise UsageError(f"{option} {file}: there is no folder '{file.parent}'", "make it first, or name another one")
    filesystem.check_writable(file)


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder, a packed model, an alias (tiny, mixtral, dbrx, ...) or a Hub id org/name[@revision].",
        autocompletion=complete_model,
        show_default=False,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype", "--quant", help="Format of the weights: auto (as stored if it fits), fp32, bf16, fp16, q8, q4, ..."
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--ctx", help="Context length in tokens, prompt and answer together.", show_default=False, callback=at_least(1)
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", help="Number of compute threads.", show_default=False, callback=at_least(1))
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no statistics.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show what is decided, and why.")]
Offline = Annotated[bool, typer.Option("--offline", help="Use no network; what is not on this machine is an error.")]
NoColor = Annotated[bool, typer.Option("--no-color", help="Use no colour.")]
Ram = Annotated[
    str | None,
    typer.Option("--ram", metavar="SIZE", help="RAM budget, e.g. 6GiB; default: what is free now.", show_default=False),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Assume yes for all questions.")]
