"""`moecli rm`: delete a model and say what was freed."""

from __future__ import annotations

from typing import Annotated

import typer

from moecli.cli import options
from moecli.output import terminal

EXAMPLES = """Examples:

  moecli rm mixtral

  moecli rm org/name@v1.0 --yes --json
"""


def rm(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="As `moecli list` names it; NAME@REVISION for one revision of it.",
            autocompletion=options.complete_local,
            show_default=False,
        ),
    ],
    *,
    yes: options.Yes = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Log = False,
    no_color: options.NoColor = False,
) -> None:
    """Delete a model that was pulled or packed; with @revision only that revision. What others share stays."""
    from moecli.library.removal import removal
    from moecli.library.resolve import resolve
    from moecli.output.json.rm import document
    from moecli.units import format_bytes

    target = removal(resolve(model, own_name=True))
    size = format_bytes(target.bytes)
    shared = f" ({format_bytes(target.kept_bytes)} that other revisions share stay)" if target.kept_bytes else ""
    what = (
        f"{target.source}@{target.revisions[0][:12]}"
        if "@" in model and target.revisions
        else f"all of {target.source}"
    )
    terminal.confirm(f"delete {what} and free {size}{shared}?", yes)
    target.carry_out()
    if json:
        terminal.write_json(document(target))
    elif not quiet:
        terminal.say(f"deleted {what}: {size} freed{shared}")
