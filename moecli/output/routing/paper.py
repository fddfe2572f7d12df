"""Mixtral 8x7B beside its published figures: temporal locality and each expert's share."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.text import Text

from moecli.output import tables
from moecli.output.routing.heat import domain_name
from moecli.routing.published import LOCALITY_LAYERS, LOCALITY_SOURCE, SHARES_LAYERS, SHARES_SOURCE, Paper

Table = tuple[str, list[str], list[list[str]], str]  # title, header, rows, source


def parts(to: Console, paper: Paper) -> list[RenderableType]:
    """Both tables beside the paper's, in blocks as wide as the terminal."""
    shown: list[RenderableType] = []
    for title, header, rows, source in (locality(paper), shares(paper)):
        shown += [tables.title(title), *tables.blocks(to, header, rows), Text(f"* published: {source}", "dim")]
    return shown


def locality(paper: Paper) -> Table:
    """Share of neighbouring tokens with the same first choice, and with a choice in common."""
    header = ["%", *(f"{kind} L{layer}" for kind in ("same", "any") for layer in LOCALITY_LAYERS)]
    rows = [
        [domain_name(row.domain) + mark, *map(_percent, (*row.first, *row.either))]
        for mark, part in ((" *", paper.published_locality), ("", paper.locality))
        for row in part
    ]
    baseline = [_percent(paper.random[kind]) for kind in (0, 1) for _ in LOCALITY_LAYERS]
    return "Temporal locality beside the paper", header, [*rows, ["random baseline", *baseline]], LOCALITY_SOURCE


def shares(paper: Paper) -> Table:
    """Each expert's share of the assignments in percent, 12.5 being even."""
    header = ["%", *(f"e{expert}" for expert in range(len(paper.published_shares[0].shares[0])))]
    rows = [
        [f"{domain_name(row.domain)} L{layer}{mark}", *map(_percent, row.shares[place])]
        for place, layer in enumerate(SHARES_LAYERS)
        for mark, part in ((" *", paper.published_shares), ("", paper.shares))
        for row in part
    ]
    return "Share of each expert beside published counts", header, rows, SHARES_SOURCE


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share * 100:.1f}"
