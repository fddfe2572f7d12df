"""All views of one analysis on one screen: heatmap, figures, domains, tokens, text, cache, comparison, paper."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.text import Text

from moecli.output import tables
from moecli.output.routing import against, cache, figures, heatmap, paper, sides, text
from moecli.output.routing.heat import View, chosen, heats, panels
from moecli.output.routing.words import name
from moecli.routing.analysis import Analysis
from moecli.routing.report import RoutingReport

_ROWS = "norm. entropy", "MaxVio", "dead experts", "repeat, first", "repeat, any", "overlap", "foreseen", "gate entropy"


def screen(
    analysis: Analysis,
    *,
    layers: Sequence[int] | None = None,
    sort: bool = False,
    by_domain: bool = False,
    no_color: bool = False,
) -> None:
    """Print all views on stdout. UsageError for a layer that was not recorded."""
    view = View(None if layers is None else tuple(layers), sort, by_domain)
    draw(tables.console(no_color), analysis, view)


def draw(to: Console, analysis: Analysis, view: View) -> None:
    """Print all views on this console. UsageError for a layer that was not recorded."""
    report = chosen(analysis.report, view.layers)
    drawn = heats(report, view)
    parts: list[RenderableType] = [
        tables.Group(tables.title(name(analysis.name), "routing"), Text(size(report), "dim"))
    ]
    parts += [Text(f"note: {name(note, 1000)}", "yellow") for note in sides.notes(analysis)]
    parts += [*heatmap.blocks(to, drawn), heatmap.legend(to, drawn)]
    numbers = [layer.layer for layer in report.layers]
    rows = [row for row in figures.layered(report) if row.name in _ROWS]
    rows += [*figures.distances(report), *figures.overflows(analysis, tuple(numbers))]
    parts += sides.by_layer(to, rows)
    parts += [Text(line, "dim") for line in sides.chance(report)]
    parts += against.parts(to, analysis, numbers, view.sort)
    parts += sides.domains(to, report)
    if analysis.trace.pieces:
        parts += sides.favourites(to, analysis, report.layers)
        parts += [text.panel(to, analysis, layer) for layer in panels(report.layers)]
    parts += cache.parts(to, analysis)
    if analysis.paper is not None:
        parts += paper.parts(to, analysis.paper)
    tables.show(to, *parts)


def size(report: RoutingReport) -> str:
    """12,034 tokens of 42 prompts (1,034 generated), 32 layers of 8 experts, 2 active."""
    made = f" ({report.generated_tokens:,} generated)" if report.generated_tokens else ""
    shapes = sorted({(layer.experts, layer.active) for layer in report.layers})
    experts = " or ".join(f"{experts} experts, {active} active" for experts, active in shapes)
    return (
        f"{report.tokens:,} {_plural(report.tokens, 'token')} of {report.prompts:,} "
        f"{_plural(report.prompts, 'prompt')}{made}, {len(report.layers)} "
        f"{_plural(len(report.layers), 'layer')} of {experts}"
    )


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"
