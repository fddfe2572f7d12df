"""What `perplexity` shows: the figure with its error, and what it is of."""

from __future__ import annotations

from moecli.engine.likelihood import Likelihood
from moecli.engine.windows import Cut
from moecli.output import tables
from moecli.output.estimates import shown


def show(title: str, found: Likelihood, cut: Cut | None, no_color: bool) -> None:
    """Perplexity, mean loss, and the tokens that they are over. `title`: the model's name and format."""
    facts = [
        ("model", title),
        ("perplexity", shown(found.perplexity)),
        ("loss", f"{shown(found.loss)} nats a token"),
        ("scored", of(found, cut)),
    ]
    tables.show(tables.console(no_color), tables.Facts(facts))


def of(found: Likelihood, cut: Cut | None) -> str:
    """7,351 of 7,355 tokens, in 4 windows of 2,048."""
    windows = f"{found.windows:,} window{'s' * (found.windows != 1)}"
    how = ""
    if cut is not None:
        stands = "BOS and " if cut.before else ""
        how = f" of {stands}{cut.size - len(cut.before):,} tokens, one every {cut.stride:,}"
    return f"{found.scored:,} of {found.tokens:,} tokens, in {windows}{how}"
