"""`moecli doctor`: this machine as the program sees it, and what is wrong with it."""

from __future__ import annotations

import typer

from moecli.cli import options
from moecli.output import terminal

EXAMPLES = """Examples:

  moecli doctor

  moecli doctor --quiet || echo "something is wrong"

  moecli doctor --json
"""


def doctor(
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Log = False,
    no_color: options.NoColor = False,
) -> None:
    """Show this machine as moecli sees it; measure memory and disks. Exit 1 if something is wrong."""
    from moecli.doctor.examination import examine, remember
    from moecli.doctor.verdict import problems
    from moecli.output import doctor as view
    from moecli.output.json.doctor import document

    with terminal.status("measuring ...", quiet or json):
        found = examine(measure=json or not quiet)
        remember(found)
    wrong = list(problems(found))
    if json:
        terminal.write_json(document(found, wrong))
    else:
        view.screen(found, wrong, quiet, no_color)
    if wrong:
        raise typer.Exit(1)
