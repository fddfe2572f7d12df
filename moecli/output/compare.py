"""What `compare` shows: both models' perplexity, how far apart they are, and which layers route otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from moecli.engine.compare import TextComparison
from moecli.engine.windows import Cut
from moecli.output import tables
from moecli.output.estimates import shown
from moecli.output.perplexity import of
from moecli.planning.placement import Plan
from moecli.routing.agreement import Agreement


def show(names: Sequence[str], plans: Sequence[Plan], found: TextComparison, cut: Cut | None, no_color: bool) -> None:
    """A row for each model, the distance of the second from the first, and a row for each layer."""
    sides = [
        (name, plan.memory.dtype, shown(side.perplexity), shown(side.loss))
        for name, plan, side in zip(names, plans, (found.first, found.second), strict=True)
    ]
    apart = found.divergence
    facts = [
        ("difference", f"{shown(found.difference)} nats a token: perplexity x {np.exp(found.difference.value):.4f}"),
        ("KL", f"{shown(apart.mean)} nats from the first to the second"),
        ("", f"median {apart.median:.3g}, 99th percentile {apart.percentile_99:.3g}, largest {apart.largest:.3g}"),
        ("same top", f"{shown(found.same_top, '%', 100)} of tokens have the same likeliest one"),
        ("scored", of(found.first, cut)),
    ]
    parts: list[RenderableType] = [
        tables.grid(("model", "format", "perplexity", "loss"), sides, left=(0, 1)),
        tables.Facts(facts),
    ]
    parts += _routing(found.routing) if found.routing else [Text("routers: none, or of different shape", "dim")]
    tables.show(tables.console(no_color), *parts)


def _routing(agreed: Agreement) -> list[RenderableType]:
    """Shares of all tokens read that are routed otherwise, beside two uniform routers."""
    rows = [
        (str(layer.layer), *_shares(1 - layer.equal_sets, 1 - layer.overlap, 1 - layer.equal_first))
        for layer in agreed.layers
    ]
    firsts = float(np.mean([layer.equal_first for layer in agreed.layers]))
    chance = agreed.layers[0]
    rows += [
        ("all", *_shares(1 - agreed.equal_sets, 1 - agreed.overlap, 1 - firsts)),
        ("uniform", *_shares(1 - chance.equal_sets_by_chance, 1 - chance.overlap_by_chance), ""),
    ]
    header = ("layer", "set", "experts", "first")
    said = f"{agreed.tokens:,} tokens: share with another set of experts, of their experts, with another first"
    return [tables.Group(Text("Routing flips", "bold"), Text(said, "dim")), tables.grid(header, rows)]


def _shares(*values: float) -> list[str]:
    return [tables.percent(max(0.0, value)) for value in values]
