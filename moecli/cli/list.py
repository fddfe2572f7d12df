"""`moecli list`: the models on this machine, or all that moecli knows by name."""

from __future__ import annotations

from typing import Annotated

from moecli.cli import options
from moecli.output import terminal

EXAMPLES = """Examples:

  moecli list

  moecli list --known

  moecli list --json
"""


def list_models(
    known: Annotated[
        bool, options.option("--known", help="List the catalog instead: every model with an alias.")
    ] = False,
    json: options.Json = False,
    format: options.Form = None,
    output: options.Output = None,
    no_color: options.NoColor = False,
) -> None:
    """Show the models on this machine, or with --known every model that has an alias."""
    from moecli.library import listing
    from moecli.output import listing as view
    from moecli.output import tables
    from moecli.output.json import list as documents

    if known:
        catalogued = listing.known()
        if json:
            terminal.write_json(documents.known(catalogued))
        else:
            view.show_known(tables.console(no_color), catalogued)
        return
    here = listing.here()
    if json:
        terminal.write_json(documents.here(here))
    else:
        view.show_here(tables.console(no_color), here)
