"""A trace beside another one: agreement of choices, distance of loads, both heatmaps."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.text import Text

from moecli.output import tables
from moecli.output.routing import heatmap, sides
from moecli.output.routing.figures import Layered, by_chance
from moecli.output.routing.heat import Heat, heat
from moecli.output.routing.words import name
from moecli.routing.analysis import Analysis, Comparison


def parts(to: Console, analysis: Analysis, layers: Sequence[int], sort: bool) -> list[RenderableType]:
    """Both heatmaps, a table of agreement and a sentence; nothing where there is no second trace."""
    comparison = analysis.comparison
    if comparison is None:
        return []
    pair = heats(analysis, comparison, layers, sort)
    shown: list[RenderableType] = [
        tables.title("Against", name(comparison.name)),
        *heatmap.blocks(to, pair),
        heatmap.legend(to, pair),
    ]
    if rows := agreements(comparison, layers):
        shown.append(sides.by_layer(to, rows)[0])
    return [*shown, Text(sentence(comparison))]


def heats(analysis: Analysis, comparison: Comparison, layers: Sequence[int], sort: bool) -> tuple[Heat, ...]:
    """The heatmaps of this trace and the other, of the chosen layers that each has."""
    both = (analysis.name, analysis.report), (comparison.name, comparison.report)
    return tuple(heat(report, sort, name(title, 36), layers) for title, report in both)


def agreements(comparison: Comparison, layers: Sequence[int]) -> list[Layered]:
    """A row for each kind of agreement, beside two uniform routers."""
    rows: list[Layered] = []
    if (agreed := comparison.agreement) is not None:
        kept = [one for one in agreed.layers if one.layer in layers]
        whole = len(kept) == len(agreed.layers)  # the means are over all layers
        for kind, values, chance, mean in (
            ("equal sets", [one.equal_sets for one in kept], [one.equal_sets_by_chance for one in kept],
             agreed.equal_sets),
            ("equal first", [one.equal_first for one in kept], None, None),
            ("same experts", [one.overlap for one in kept], [one.overlap_by_chance for one in kept], agreed.overlap),
        ):  # fmt: skip
            rows.append(
                Layered(
                    kind,
                    tuple(one.layer for one in kept),
                    tuple(values),
                    tuple(chance) if chance else None,
                    mean=mean if whole else None,
                    falls=True,
                    format=tables.percent,
                )
            )
    if comparison.loads is not None:
        pairs = [
            (layer.layer, distance)
            for layer, distance in zip(comparison.report.layers, comparison.loads, strict=True)
            if layer.layer in layers
        ]
        rows.append(
            Layered(
                "JSD of loads",
                tuple(layer for layer, _ in pairs),
                tuple(distance.mean for _, distance in pairs),
                **by_chance([distance.chance for _, distance in pairs]),
                title="Jensen-Shannon divergence of the loads, bit",
                format=lambda value: f"{value:.4f}",
            )
        )
    return rows


def sentence(comparison: Comparison) -> str:
    """One sentence: how far the two traces agree, or why their choices cannot be compared."""
    agreed = comparison.agreement
    if agreed is None:
        return f"Choices are not compared: {name(comparison.reason or '', 500)}."
    baseline = tables.percent(agreed.layers[0].overlap_by_chance)
    return (
        f"Over {agreed.tokens:,} tokens in common, {tables.percent(agreed.overlap)} of the experts are the same, "
        f"random baseline {baseline}; the whole set is the same for {tables.percent(agreed.equal_sets)}."
    )
