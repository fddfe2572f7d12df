"""`moecli help [COMMAND]`: the same as --help."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = """
moecli help
moecli help run
"""


def help_of(
    context: typer.Context,
    command: Annotated[
        str | None, typer.Argument(metavar="COMMAND", help="Without it: the program.", show_default=False)
    ] = None,
) -> None:
    """Show the help of a command. `man moecli` has all of it as one page."""
    above = context.parent
    assert above is not None
    if command is None:
        above.get_help()
        return
    found = above.command.get_command(above, command)  # type: ignore[attr-defined]  # it is the Group
    if found is None:
        above.command.resolve_command(above, [command])  # type: ignore[attr-defined]
    with found.make_context(command, [], parent=above, resilient_parsing=True) as its:
        found.get_help(its)
