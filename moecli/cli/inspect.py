"""`moecli inspect`: what a model is, from its configuration and the headers of its weights; or what its router does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moecli import settings
from moecli.cli import options
from moecli.cli.routing import show as show_routing
from moecli.cli.routing_options import RoutingOptions
from moecli.errors import CheckpointError, MoecliError, UsageError
from moecli.output import terminal

EXAMPLES = """Examples:

  moecli inspect mixtral

  moecli inspect mixtral dbrx grok-1 deepseek-v2 llama-2-70b

  moecli inspect ./my-model --json

  moecli inspect tiny --routing --by domain

  moecli inspect mixtral --routing --prompts my-texts.txt --against dtype=q4 -o routing.html
"""

Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL...",
        help="Aliases, folders, config.json files or Hub ids org/name[:GGUF][@revision].",
        autocompletion=options.complete_model,
        show_default=False,
    ),
]


@options.with_options_of_fields
def inspect(
    models: Models = None,
    *,
    offline: options.Offline = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Log = False,
    no_color: options.NoColor = False,
    with_routing: Annotated[
        bool, options.option("--routing", help="Run the model on prompts and show what its router does.")
    ] = False,
    routing: RoutingOptions = RoutingOptions(),
) -> None:
    """Show the architecture of a model; several side by side. With --routing, what its router does.

    Aliases need no network and no weights. Of a Hub id only config.json and the headers of the weights are read.
    """
    if with_routing:
        show_routing(models or [], routing, json, no_color, offline, quiet or json)
    else:
        routing.refuse()
        form = options.record_form(routing.format, json, routing.output)
        if not models:
            raise UsageError("no MODEL is named", "moecli inspect tiny")
        _architecture(models, form, routing.output, no_color, offline, quiet)


def _architecture(
    models: list[str], form: str, output: Path | None, no_color: bool, offline: bool, quiet: bool
) -> None:
    from moecli.library import inspection
    from moecli.library.resolve import resolve

    reports, refs = [], []
    for ref in [resolve(model) for model in models]:  # every name is looked up before anything is read
        refs.append(ref)
        ask_hub = ref.by_hub_id and not (offline or settings.offline())
        with terminal.status(f"reading {ref.name} ...", quiet or form != "table"):
            reports.append(inspection.inspect(ref, ask_hub))
    reference = inspection.dense_reference(reports)
    if form != "table":
        from moecli.output import records
        from moecli.output.json.inspect import document

        records.write([document(report, reference) for report in reports], form, output)
    elif len(reports) > 1:
        from moecli.output import comparison, tables

        comparison.comparison(tables.console(no_color), reports, reference)
    else:
        from moecli.library.advice import advise_on_report
        from moecli.output import inspect as view
        from moecli.output import tables

        view.card(tables.console(no_color), reports[0], advise_on_report(refs[0], reports[0]))
    for report in reports:
        if report.inventory is not None and report.inventory.differences:
            raise _disagreement(report.model, report.inventory.differences)


def _disagreement(model: str, differences: tuple[str, ...]) -> MoecliError:
    more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
    return CheckpointError(
        f"the weights of '{model}' differ from config.json: {differences[0]}{more}",
        "config.json and the weights belong to different models, or files are missing or damaged",
    )
