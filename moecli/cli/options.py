"""Options that mean the same in every command, declared once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer


def _complete_model(incomplete: str) -> Iterator[str]:
    """Aliases, then what is in the Hugging Face cache; touches no network and imports nothing heavy."""
    from moecli import catalog, hub

    names = [catalog.BUILT_IN, *(entry.alias for entry in catalog.known())]
    names += [model.repo for model in hub.local_models()]
    return (name for name in dict.fromkeys(names) if name.startswith(incomplete))


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder, an alias (tiny, mixtral, dbrx, ...) or a Hub id org/name[@revision].",
        autocompletion=_complete_model,
        show_default=False,
    ),
]
Dtype = Annotated[str, typer.Option("--dtype", "--quant", help="Weights: auto (as stored), fp32, bf16 or fp16.")]
Context = Annotated[
    int | None, typer.Option("--ctx", min=1, help="Longest text in tokens, prompt and answer.", show_default=False)
]
Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Compute threads.", envvar="MOECLI_THREADS", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no statistics.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say what is decided and why.")]
