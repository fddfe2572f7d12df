"""`moecli list`: the models on this machine, or all that moecli knows by name."""

from __future__ import annotations

from typing import Annotated

import typer

from moecli.cli import options

EXAMPLES = """Examples:

  moecli list

  moecli list --known

  moecli list --known qwen

  for model in $(moecli list -q); do moecli verify "$model"; done

  moecli list --json
"""


def list_models(
    word: Annotated[
        str, typer.Argument(metavar="WORD", help="Only models in whose name it is.", show_default=False)
    ] = "",
    *,
    known: Annotated[
        bool, options.option("--known", help="List the catalog instead: every model with an alias.")
    ] = False,
    json: options.Json = False,
    format: options.Form = None,
    output: options.Output = None,
    quiet: Annotated[
        bool, options.option("--quiet", "-q", panel=options.OUTPUT, help="Print the names alone, a line each.")
    ] = False,
    verbose: options.Log = False,
    no_color: options.NoColor = False,
) -> None:
    """Show the models on this machine, or with --known every model that has an alias, smallest first.

    Once a model is packed its name means the packed one, which has a mark here.
    """
    from moecli.library import listing
    from moecli.output import listing as view
    from moecli.output import records, tables
    from moecli.output.json import list as documents

    form = options.record_form(format, json, output)
    if known:
        catalogued = listing.known(word)
        if quiet and form == "table":
            view.show_names([model.alias for model in catalogued])
        elif form != "table":
            records.write(documents.known(catalogued), form, output, array=True)
        else:
            view.show_known(tables.console(no_color), catalogued)
        return
    here = [model for model in listing.here() if word.casefold() in f"{model.name} {model.source}".casefold()]
    if quiet and form == "table":
        view.show_names([model.name for model in here])
    elif form != "table":
        records.write(documents.here(here), form, output, array=True)
    else:
        view.show_here(tables.console(no_color), here)
