"""`moecli memory`: what a model takes, where it goes, how fast it will be; without its weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moecli.cli import options
from moecli.cli.inspect import Models
from moecli.errors import NetworkError, UsageError
from moecli.formats.words import with_dense
from moecli.units import format_bytes

if TYPE_CHECKING:
    from moecli.planning.estimate import Budget

EXAMPLES = """Examples:

  moecli memory grok-1 --dtype bf16

  moecli memory mixtral --gpu rtx4090 --ram 64GiB --ctx 32768

  moecli memory olmoe qwen3-30b-a3b mixtral --ram 16GiB

  moecli memory unsloth/Qwen3-30B-A3B-GGUF --files

  moecli memory dbrx --dtype q4 --ram 80GiB --check && echo "it fits"
"""


def _complete_gpu(incomplete: str) -> Iterator[options.Choice]:
    from moecli.planning.gpus import GPUS

    return ((name, format_bytes(card.memory)) for name, card in GPUS.items() if name.startswith(incomplete))


def memory(
    models: Models = None,
    *,
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
    dense: options.Dense = None,
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
            metavar="NAME[:N]",
            panel=options.MEMORY,
            help="A GPU by name, e.g. rtx4090:2; `list` shows them. Default: this machine's, once used; `none`: none.",
            complete=_complete_gpu,
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
    files: Annotated[
        bool, options.option("--files", help="List the GGUF files of a repository: size, bits per weight, what fits.")
    ] = False,
    max_ctx: Annotated[bool, options.option("--max-ctx", help="Show the longest context that fits.")] = False,
    quiet: Annotated[
        bool, options.option("--quiet", "-q", panel=options.OUTPUT, help="With --check: say it by exit code alone.")
    ] = False,
    json: options.Json = False,
    format: options.Form = None,
    output: options.Output = None,
    offline: options.Offline = False,
    verbose: options.Log = False,
    no_color: options.NoColor = False,
) -> None:
    """What a model takes, where it goes, how fast it will be; without its weights. Several models: a line each.

    Without --dtype: every format in a table, and the best one for this machine. --check and --max-ctx then answer for
    the format that does best.
    """
    from moecli import settings
    from moecli.library import advice, inspection
    from moecli.library.resolve import Kind, resolve
    from moecli.output import memory as show
    from moecli.output import records
    from moecli.output.json.memory import document
    from moecli.planning.estimate import Budget, estimate

    form = options.record_form(format, json, output)
    if dtype is not None or dense is not None:
        dtype = with_dense(dtype or "auto", dense)
    if gpu == "list":
        show.gpus(no_color)
        return
    if not models:
        raise UsageError("no MODEL is named", "moecli memory mixtral, or --gpu list")
    if max_ctx and len(models) > 1:
        raise UsageError("--max-ctx is of one model", f"moecli memory {models[0]} --max-ctx")
    budget = Budget.of(ram, vram, gpu, ram_speed, disk_speed)
    if files:
        if offline:
            settings.forbid_network()
        _list_files(models, budget, ctx, batch, form, output, no_color)
        return
    subjects = []
    for ref in [resolve(model) for model in models]:
        report = inspection.inspect(ref, ask_hub=ref.by_hub_id and not (offline or settings.offline()))
        packed = report.inventory.format if ref.kind is Kind.STORE and report.inventory is not None else None
        named = dtype or (None if ref.dtype == "auto" else ref.dtype)
        result = estimate(report.model, report.spec, budget, named or packed, ctx, batch, max_ctx, report.kept)
        wanted = result.chosen.memory.dtype if result.asked else "auto"
        advised = advice.advise_on_report(ref, report, wanted, budget, ctx, batch, here=ram is None)
        subjects.append(show.Subject(result, report, advised))
    if form != "table":
        documents = [document(each.result, each.report, each.advice) for each in subjects]
        if form != "json":  # a row a format
            documents = [{"model": each["model"], **row} for each in documents for row in each["formats"] or [each]]
        records.write(documents, form, output)
    elif quiet and check:
        pass  # the exit code says it
    elif max_ctx:
        show.largest_context(subjects[0].result)
    elif len(subjects) > 1:
        show.comparison(subjects, no_color)
    else:
        show.screen(subjects[0], explain, no_color)
    if check and not all(each.result.fits for each in subjects):
        raise typer.Exit(3)


def _list_files(
    models: list[str], budget: Budget, ctx: int | None, batch: int, form: str, output: Path | None, no_color: bool
) -> None:
    """`--files` of one repository."""
    from moecli import settings
    from moecli.library.gguf_variants import offers
    from moecli.library.resolve import resolve
    from moecli.output import gguf_variants as show
    from moecli.output import records

    if len(models) > 1:
        raise UsageError("--files is of one repository", f"moecli memory {models[0]} --files")
    if settings.offline():
        raise NetworkError("--files asks the Hub, and the network is not to be used", "leave out --offline")
    found = offers(resolve(models[0], original=True), budget, ctx, batch)
    if form == "table":
        show.screen(found, no_color)
    else:
        records.write(show.document(found), form, output, array=True)
