"""How likely answers are, as a table: the likeliest first."""

from __future__ import annotations

from collections.abc import Sequence

from moecli.engine.score import LabelScore, shares
from moecli.output import tables


def show(scores: Sequence[LabelScore], no_color: bool) -> None:
    """Each label with its share among them, its log-probability and its tokens."""
    rows = [
        (each.name, tables.percent(share), f"{each.logprob:.3f}", f"{len(each.token_ids)}")
        for share, each in sorted(zip(shares(scores), scores, strict=True), key=lambda row: -row[1].logprob)
    ]
    tables.show(tables.console(no_color), tables.grid(("label", "share", "log-probability", "tokens"), rows))
