"""What `pull` and `run` do to bring a model here: ask the Hub, show what that takes, ask the person, fetch and pack."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from moecli.cli.pack import load_packer
from moecli.errors import Declined, ModelNotFound, NetworkError, UsageError
from moecli.hub import download
from moecli.library import advice, pull_packed, stores, tokenizers
from moecli.library.advice import Advice
from moecli.library.pull import Proposal, check_space, propose
from moecli.library.pull_packed import PackedPull, propose_packed
from moecli.library.resolve import Kind, ModelRef, fetched
from moecli.output import pack as account
from moecli.output import pull as view
from moecli.output import terminal
from moecli.output.json import pull as documents
from moecli.output.pull import PackingBars
from moecli.planning.estimate import Budget
from moecli.store.packed import PackedStore


@dataclass(frozen=True, slots=True)
class Talk:
    """How much is said, and how."""

    json: bool = False
    quiet: bool = False
    no_color: bool = False

    @property
    def still(self) -> bool:
        """Whether no progress is shown."""
        return self.json or self.quiet


def pull(
    ref: ModelRef, dtype: str | None, target: Path | None, keep: bool, threads: int | None, yes: bool, talk: Talk
) -> None:
    """Fetch a model, packed on the way where a `dtype` is named, and print where it lies."""
    plan = _ask_hub(ref, dtype, target, keep, talk.still)
    proposal = plan if isinstance(plan, Proposal) else plan.proposal
    _check_tokenizer(ref, plan)
    if not talk.quiet:
        view.unasked(plan)
    if not talk.still:
        view.screen(plan, on_stderr=True, no_color=talk.no_color)
    if isinstance(plan, Proposal):
        check_space(plan)
    elif plan.store is None:
        pull_packed.check_space(plan)
    if proposal.missing and proposal.doubts and not (isinstance(plan, PackedPull) and plan.store):
        for doubt in proposal.doubts:
            terminal.say(f"note: {doubt}")
        terminal.confirm("pull it nevertheless?", yes)
    if isinstance(plan, Proposal):
        path = _fetch(plan, talk.still)
        tokenizers.lay(ref, path)
        if ref.variant is not None:
            path = path / plan.manifest.weights[0].name
        if talk.json:
            terminal.write_json(documents.fetched(plan))
        else:
            if not talk.quiet:
                then = "run" if plan.estimate.plan.fits else "pack"
                terminal.say(f"next: moecli {then} {shlex.quote(ref.typed)}")
            terminal.write_path(path)
        return
    store, bars = _pack(plan, threads, talk.still)
    if talk.json:
        terminal.write_json(documents.packed(plan, store, bars))
        return
    if not talk.quiet:
        account.summary(store, bars)
    terminal.write_path(store.folder)


def dry_run(ref: ModelRef, dtype: str | None, target: Path | None, keep: bool, talk: Talk) -> None:
    """Show what a pull would do; by the catalog, where the Hub cannot be asked. Exit 3 if the disk is too small."""
    try:
        plan = _ask_hub(ref, dtype, target, keep, talk.still)
    except NetworkError as error:
        guess = advice.pull_estimate(ref, dtype)
        if guess is None:
            raise
        if talk.json:
            terminal.write_json(documents.estimated(guess, error.message))
        else:
            view.estimate(guess, error.message, talk.no_color)
        has_room = guess.ways[0].has_room
    else:
        if not talk.quiet:
            view.unasked(plan)
        if talk.json:
            terminal.write_json(documents.proposed(plan))
        else:
            view.screen(plan, on_stderr=False, no_color=talk.no_color, doubts=True)
        has_room = (plan if isinstance(plan, Proposal) else plan.proposal).has_room
    if not has_room:
        raise typer.Exit(3)


def for_run(
    ref: ModelRef, known: Advice | None, dtype: str, ram: str | None, context: int | None, quiet: bool, yes: bool
) -> ModelRef:
    """Show what it takes to run a model that is not here, ask, and fetch it in the format that runs here.

    `known`: what is known of it without the Hub. ModelNotFound, which names the command that would do it, if it is not
    wanted or will not run.
    """
    budget = Budget.of(ram)
    if known is None:  # the Hub alone knows what it is
        first = _propose(ref, quiet, budget, context)
        known = advice.advise(ref, first.spec, first.lacks, budget, dtype, context, fetch=first.manifest.bytes)
        if not known.possible:
            raise advice.missing(ref, known)
    assert known.way is not None
    on_the_way = known.way.packed and ref.variant is None
    plan = _ask_hub(ref, known.way.dtype if on_the_way else None, None, False, quiet, budget, context)
    proposal = plan if isinstance(plan, Proposal) else plan.proposal
    if lack := proposal.lacks_tokenizer:
        raise ModelNotFound(
            f"'{ref.name}' cannot be run: {lack}", f"moecli run {shlex.quote(ref.typed)} --tokenizer NAME"
        )
    if not (yes and quiet):
        view.screen(plan, on_stderr=True, no_color=False)
    for doubt in proposal.doubts:
        terminal.say(f"note: {doubt}")
    try:
        terminal.confirm(view.question(plan), yes, default=not proposal.doubts)
    except Declined:
        raise advice.missing(ref, known) from None
    if isinstance(plan, Proposal):
        check_space(plan)
        return fetched(ref, _fetch(plan, quiet), [file.name for file in plan.manifest.weights])
    if plan.store is None:
        pull_packed.check_space(plan)
    folder = _pack(plan, None, quiet)[0].folder
    return replace(ref, kind=Kind.STORE, name=folder.name, folder=folder, store=stores.describe(folder))


def _check_tokenizer(ref: ModelRef, plan: Proposal | PackedPull) -> None:
    """UsageError where a tokenizer was given for what has one."""
    proposal = plan if isinstance(plan, Proposal) else plan.proposal
    for_a_run = "moecli run MODEL --tokenizer takes another one for a run"
    if ref.tokenizer is not None and proposal.own_tokenizer is not None:
        raise UsageError(f"{proposal.manifest.repo} has a tokenizer, {proposal.own_tokenizer}", for_a_run)
    if ref.tokenizer is not None and isinstance(plan, PackedPull) and plan.store is not None:
        raise UsageError(f"{plan.target} is packed already, without that tokenizer", for_a_run)


def _ask_hub(
    ref: ModelRef,
    dtype: str | None,
    target: Path | None,
    keep: bool,
    quiet: bool,
    budget: Budget | None = None,
    context: int | None = None,
) -> Proposal | PackedPull:
    """What a pull would do: of the files as they are, or into a store in `dtype`."""
    if dtype is None:
        return _propose(ref, quiet, budget, context)
    with terminal.status(f"asking the Hub for {ref.name} ...", quiet):
        return propose_packed(ref, dtype, target, keep, view.tell, budget, context)


def _propose(ref: ModelRef, quiet: bool, budget: Budget | None, context: int | None) -> Proposal:
    with terminal.status(f"asking the Hub for {ref.name} ...", quiet):
        return propose(ref, view.tell, budget=budget, context=context)


def _fetch(proposal: Proposal, quiet: bool) -> Path:
    with view.Bars(proposal.manifest.bytes, quiet) as bars:
        return download.fetch_all(proposal.manifest, bars)


def _pack(pull: PackedPull, threads: int | None, quiet: bool) -> tuple[PackedStore, PackingBars]:
    if pull.store is None:
        load_packer(threads, quiet)
    try:
        with view.PackingBars(pull, quiet) as bars:
            return pull_packed.pull_packed(pull, bars, bars.packed), bars
    except KeyboardInterrupt:
        terminal.say("interrupted; the same command goes on from here")
        raise typer.Exit(130) from None
