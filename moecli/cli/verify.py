"""`moecli verify`: re-hash a model and say what differs."""

from __future__ import annotations

from typing import Annotated

import typer

from moecli.cli import options
from moecli.errors import UsageError
from moecli.output import terminal

EXAMPLES = """Examples:

  moecli verify mixtral

  moecli verify mixtral --remove && moecli pull mixtral
"""


def verify(
    model: options.LocalModel,
    *,
    against: Annotated[
        str | None,
        options.option(
            metavar="MODEL",
            help="Compare a packed model with this checkpoint, packed again.",
            complete=options.complete_model,
        ),
    ] = None,
    remove: Annotated[
        bool, options.option("--remove", help="Delete damaged files, so that pull fetches them.")
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Log = False,
    no_color: options.NoColor = False,
) -> None:
    """Read every file of a model again: is it what was published, or packed? Exit 3 if something differs."""
    from moecli.library import verification
    from moecli.library.resolve import resolve
    from moecli.output import verify as view
    from moecli.output.json.verify import document

    subject = verification.subject(resolve(model, own_name=True))
    if against is not None and not subject.packed:
        raise UsageError(f"'{subject.name}' is not a packed model", "--against compares a store with its checkpoint")
    other = None if against is None else resolve(against, original=True)
    with view.bar(subject, quiet or json) as advance:
        results = list(verification.check(subject, advance))
        if other is not None:
            results += verification.compare(subject, other, advance)
    for result in results:
        if remove and result.damaged and not subject.packed and result.path.is_file():
            result.path.unlink()
    if json:
        terminal.write_json(document(subject, results, remove))
    else:
        view.report(subject, results, remove, quiet)
    if any(result.problem for result in results):
        raise typer.Exit(3)
