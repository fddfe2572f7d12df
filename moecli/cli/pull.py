"""`moecli pull`: a model from the Hub into the Hugging Face cache, or straight into a packed store."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moecli import settings
from moecli.cli import options
from moecli.cli.pack import StoreFolder, load_packer
from moecli.errors import Declined, UsageError
from moecli.formats import check_dtype
from moecli.output import terminal

if TYPE_CHECKING:
    from moecli.library.pull import Proposal
    from moecli.library.pull_packed import PackedPull
    from moecli.library.resolve import ModelRef

EXAMPLES = """Examples:

  moecli pull mixtral --dry-run

  moecli pull mixtral --dtype q4

  moecli pull Qwen/Qwen3-30B-A3B@main --yes --json
"""


def pull(
    model: options.Model,
    *,
    dtype: Annotated[
        str | None,
        options.option(
            "--dtype",
            "--quant",
            metavar="FORMAT",
            values=options.DTYPES[1:],
            help=f"Pack on the way, shard by shard: {', '.join(options.DTYPES[1:])}.",
        ),
    ] = None,
    output: StoreFolder = None,
    keep_original: Annotated[
        bool, options.option("--keep-original", help="With --dtype: keep the downloaded files as well.")
    ] = False,
    threads: options.Threads = None,
    dry_run: Annotated[bool, options.option("--dry-run", help="Show what would be fetched, and stop.")] = False,
    yes: options.Yes = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Download a model from the Hub: safetensors, configuration and tokenizer only.

    With --dtype each shard is packed when it arrives, and deleted: the disk never holds more than the packed model and
    two shards. Interrupted, it goes on where it stopped when repeated. It asks only where something speaks against it.
    """
    from moecli.library.resolve import resolve

    ref = resolve(model, original=True)
    if dtype is not None:
        check_dtype(dtype)
        target = Path(os.path.realpath(output)) if output else None
        packing = _propose_packed(ref, dtype, target, keep_original, quiet or json)
        _show(packing, dry_run, json, quiet, no_color)
        if not dry_run:
            _pack(packing, threads, yes, json, quiet)
        return
    if output is not None or keep_original:
        raise UsageError(f"{'-o' if output else '--keep-original'} goes with --dtype", "add for instance --dtype q4")
    proposal = _propose(ref, quiet or json)
    _show(proposal, dry_run, json, quiet, no_color)
    if dry_run:
        return
    path = _fetch(proposal, yes, quiet or json)
    if json:
        from moecli.output.json import pull as documents

        terminal.write_json(documents.fetched(proposal))
    else:
        terminal.write_path(path)


def offer(ref: ModelRef, quiet: bool = False) -> ModelRef:
    """On a terminal, ask whether to pull a model that is not here; as it was if it cannot be asked or is not wanted."""
    from moecli.library.resolve import Kind
    from moecli.output import pull as view

    terminals = sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
    if ref.folder is not None or ref.repo is None or settings.offline() or not terminals:
        return ref
    try:
        terminal.confirm(f"{ref.name} is not on this machine. Pull {ref.repo} from the Hub?", yes=False)
    except Declined:
        return ref
    proposal = _propose(ref, quiet)
    if not quiet:
        view.screen(proposal, on_stderr=True, no_color=False)
    return replace(ref, kind=Kind.CACHE, folder=_fetch(proposal, yes=False, quiet=quiet))


def _propose(ref: ModelRef, quiet: bool) -> Proposal:
    from moecli.library.pull import propose
    from moecli.output import pull as view

    with terminal.status(f"asking the Hub for {ref.name} ...", quiet):
        return propose(ref, tell=view.tell)


def _propose_packed(ref: ModelRef, dtype: str, target: Path | None, keep: bool, quiet: bool) -> PackedPull:
    from moecli.library.pull_packed import propose_packed
    from moecli.output import pull as view

    with terminal.status(f"asking the Hub for {ref.name} ...", quiet):
        return propose_packed(ref, dtype, target, keep, tell=view.tell)


def _show(plan: Proposal | PackedPull, dry_run: bool, json: bool, quiet: bool, no_color: bool) -> None:
    """The answer of a dry run, or talk."""
    from moecli.output import pull as view
    from moecli.output.json import pull as documents

    if not quiet:
        view.unasked(plan)

    if dry_run and json:
        terminal.write_json(documents.proposed(plan))
    elif dry_run or not (quiet or json):
        view.screen(plan, on_stderr=not dry_run, no_color=no_color)


def _fetch(proposal: Proposal, yes: bool, quiet: bool) -> Path:
    """Ask if there is a doubt, then fetch what is missing."""
    from moecli.hub import download
    from moecli.output import pull as view

    download.check_space(proposal.manifest, proposal.manifest.files)
    _ask(proposal, yes)
    with view.Bars(proposal.manifest.bytes, quiet) as bars:
        return download.fetch_all(proposal.manifest, bars)


def _pack(pull: PackedPull, threads: int | None, yes: bool, json: bool, quiet: bool) -> None:
    """Ask if there is a doubt, then fetch and pack shard by shard, and print the store's folder."""
    from moecli.library import pull_packed
    from moecli.output import pack as account
    from moecli.output import pull as view
    from moecli.output.json import pull as documents

    if pull.store is None:
        pull_packed.check_space(pull)
        _ask(pull.proposal, yes)
        load_packer(threads, quiet or json)
    try:
        with view.PackingBars(pull, quiet or json) as bars:
            store = pull_packed.pull_packed(pull, bars, bars.packed)
    except KeyboardInterrupt:
        terminal.say("interrupted; the same command goes on from here")
        raise typer.Exit(130) from None
    if json:
        terminal.write_json(documents.packed(pull, store, bars))
        return
    if not quiet:
        account.summary(store, bars)
    terminal.write_path(store.folder)


def _ask(proposal: Proposal, yes: bool) -> None:
    if proposal.missing and proposal.doubts:
        for doubt in proposal.doubts:
            terminal.say(f"note: {doubt}")
        terminal.confirm("pull it nevertheless?", yes)
