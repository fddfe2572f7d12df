"""`moecli pull`: a model from the Hub into the Hugging Face cache."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moecli import hub, settings
from moecli.cli import options
from moecli.errors import Declined
from moecli.output import terminal

if TYPE_CHECKING:
    from moecli.download.proposal import Proposal

EXAMPLES = """Examples:

  moecli pull mixtral --dry-run

  moecli pull mixtral

  moecli pull Qwen/Qwen3-30B-A3B@main --yes --json
"""


def pull(
    model: options.Model,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be fetched, and stop.")] = False,
    yes: options.Yes = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Download a model from the Hub: safetensors, configuration and tokenizer only.

    Interrupted, it goes on where it stopped when repeated. It asks only where something speaks against it.
    """
    from moecli.output import pull as view

    proposal = _propose(hub.resolve(model), quiet or json)
    if dry_run and json:
        terminal.write_json(view.document(proposal))
    elif dry_run or not (quiet or json):
        view.screen(proposal, on_stderr=not dry_run, no_color=no_color)
    if dry_run:
        return
    path = _fetch(proposal, yes, quiet or json)
    if json:
        terminal.write_json(view.done(proposal))
    else:
        terminal.write(f"{path}\n")


def offer(source: hub.Source, quiet: bool = False) -> Path | None:
    """On a terminal, ask whether to pull a model that is not here; None if it cannot be asked or is not wanted."""
    from moecli.output import pull as view

    terminals = sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
    if source.folder is not None or source.repo is None or settings.offline() or not terminals:
        return None
    try:
        terminal.confirm(f"{source.name} is not on this machine. Pull {source.repo} from the Hub?", yes=False)
    except Declined:
        return None
    proposal = _propose(source, quiet)
    if not quiet:
        view.screen(proposal, on_stderr=True, no_color=False)
    return _fetch(proposal, yes=False, quiet=quiet)


def _propose(source: hub.Source, quiet: bool) -> Proposal:
    from moecli.download.proposal import propose
    from moecli.output import pull as view

    with terminal.status(f"asking the Hub for {source.name} ...", quiet):
        return propose(source, tell=None if quiet else view.tell)


def _fetch(proposal: Proposal, yes: bool, quiet: bool) -> Path:
    """Ask if there is a doubt, then fetch what is missing."""
    from moecli.download import fetch
    from moecli.output import pull as view

    fetch.check_space(proposal.manifest, proposal.manifest.files)
    if proposal.missing and proposal.doubts:
        for doubt in proposal.doubts:
            terminal.say(f"note: {doubt}")
        terminal.confirm("pull it nevertheless?", yes)
    with view.Bars(proposal.manifest.bytes, quiet) as bars:
        return fetch.fetch_all(proposal.manifest, bars)
