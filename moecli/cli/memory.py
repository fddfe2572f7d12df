"""`moecli memory`: what a model takes, where it goes, how fast it will be; without its weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from moecli.cli import options
from moecli.output import terminal
from moecli.units import format_bytes

EXAMPLES = """Examples:

  moecli memory grok-1 --dtype bf16

  moecli memory mixtral --gpu rtx4090 --ram 64GiB --ctx 32768

  moecli memory dbrx --dtype q4 --ram 80GiB --check && echo "it fits"
"""


def _complete_gpu(incomplete: str) -> Iterator[options.Choice]:
    from moecli.planning.gpus import GPUS

    return ((name, format_bytes(card.memory)) for name, card in GPUS.items() if name.startswith(incomplete))


def memory(
    model: options.Model,
    dtype: Annotated[
        str | None,
        options.option(
            "--dtype",
            "--quant",
            metavar="FORMAT",
            values=options.DTYPES[1:],
            help=f"Show one format in detail: {', '.join(options.DTYPES[1:])}.",
        ),
    ] = None,
    ctx: options.Context = None,
    batch: Annotated[
        int,
        options.option(
            metavar="N", help="Batch size: sequences processed together.", default=True, check=options.at_least(1)
        ),
    ] = 1,
    ram: options.Ram = None,
    vram: Annotated[
        str | None,
        options.option(metavar="SIZE", panel=options.MEMORY, help="GPU memory budget.", check=options.sized),
    ] = None,
    gpu: Annotated[
        str | None,
        options.option(
            metavar="NAME[:N]", panel=options.MEMORY, help="A GPU by name, e.g. rtx4090:2.", complete=_complete_gpu
        ),
    ] = None,
    ram_speed: Annotated[
        str | None,
        options.option(
            metavar="SIZE", panel=options.MEMORY, help="RAM bandwidth per second, e.g. 60GB.", check=options.sized
        ),
    ] = None,
    disk_speed: Annotated[
        str | None,
        options.option(
            metavar="SIZE", panel=options.MEMORY, help="Disk reads per second, e.g. 3GB.", check=options.sized
        ),
    ] = None,
    explain: Annotated[bool, options.option("--explain", help="Show each term with its formula.")] = False,
    check: Annotated[bool, options.option("--check", help="Exit 3 if it does not fit in VRAM and RAM.")] = False,
    max_ctx: Annotated[bool, options.option("--max-ctx", help="Show the longest context that fits.")] = False,
    json: options.Json = False,
    offline: options.Offline = False,
    no_color: options.NoColor = False,
) -> None:
    """What a model takes, where it goes, how fast it will be; without its weights.

    Without --dtype: every format in a table.
    """
    from moecli import settings
    from moecli.library import inspection
    from moecli.library.resolve import Kind, resolve
    from moecli.output import memory as show
    from moecli.output.json.memory import document
    from moecli.planning.estimate import Budget, estimate

    budget = Budget.of(ram, vram, gpu, ram_speed, disk_speed)
    ref = resolve(model)
    report = inspection.inspect(ref, ask_hub=ref.by_hub_id and not (offline or settings.offline()))
    if dtype is None and ref.kind is Kind.STORE and report.inventory is not None:
        dtype = report.inventory.format
    result = estimate(report.model, report.spec, budget, dtype, ctx, batch, max_ctx)
    if json:
        terminal.write_json(document(result, report))
    elif max_ctx:
        show.largest_context(result)
    else:
        show.screen(result, report, explain, no_color)
    if check and not result.chosen.plan.fits:
        raise typer.Exit(3)
