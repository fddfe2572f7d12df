"""The tables beside a heatmap: figures over the layers, domains, favourite tokens, and what to know first."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.text import Text

from moecli.output import tables
from moecli.output.routing import shades
from moecli.output.routing.figures import Layered
from moecli.output.routing.heat import domain_name
from moecli.output.routing.heatmap import number
from moecli.output.routing.words import visible
from moecli.routing.analysis import Analysis
from moecli.routing.report import LayerReport, RoutingReport

_FIXED = 63  # columns of the table of figures without its sparklines
_NARROW = 40  # the same without the furthest layer
_FEWEST = 3  # glyphs of a sparkline
_EXPERTS = 8  # with favourites


def by_layer(to: Console, rows: Sequence[Layered]) -> list[RenderableType]:
    """A row for each metric, its layers as a sparkline where there is room, and how to read that."""
    layers = rows[0].layers
    wide = to.width >= _FIXED + min(len(layers), 6)
    room = min(len(layers), to.width - (_FIXED if wide else _NARROW))
    span = f"layers {layers[0]}-{layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"
    header = ["figure", span if room >= len(span) else "", "mean", "uniform"]
    header += ["furthest layer", "above baseline"] if wide else ["above"]
    cells: list[list[str | Text]] = []
    for row in rows:
        layer, value = row.furthest
        furthest = f"{layer}: {row.format(value)}" if value else ""
        above = "" if row.above is None else f"{row.above} of {len(layers)}" if wide else f"{row.above}"
        mean = "" if row.mean is None else row.format(row.mean)
        more = [furthest, above] if wide else [above]
        cells.append([row.overall or row.name, _spark(to, row, room), mean, _uniform(row), *more])
    ramp = shades.glyphs(to).ramp
    legend = (
        f"{ramp[0]} as little as 19 of 20 uniform routers, {ramp[-1]} the furthest of its row; "
        "where the random baseline is not known, from the least to the most"
    )
    return [tables.grid(header, cells, left=(0, 1)), *([Text(legend, "dim")] if room >= _FEWEST else [])]


def _uniform(row: Layered) -> str:
    """What a uniform router shows, in the mean or in the layer where it shows most."""
    if row.uniform_mean is not None:
        return row.format(row.uniform_mean)
    return row.format(max(row.uniform)) if row.uniform else ""


def _spark(to: Console, row: Layered, room: int) -> Text:
    """A glyph for each layer, the higher of neighbours that share one: the taller, the further above the baseline."""
    if room < _FEWEST:
        return Text()
    ramp, heights = shades.glyphs(to).ramp, row.heights
    per = -(-len(heights) // room)
    text = Text()
    for start in range(0, len(heights), per):
        height = max(heights[start : start + per])
        mark = ramp[0] if height == 0 else ramp[1 + round(height * (len(ramp) - 2))]
        text.append(mark, "dim" if height == 0 else "yellow" if row.floor else "cyan")
    return text


def domains(to: Console, report: RoutingReport) -> list[RenderableType]:
    """Distances between domains beside their noise, and what they say; nothing for one domain."""
    if (found := report.domain_distance) is None:
        return []
    names = [domain_name(domain) for domain in report.domains]
    rows = []
    for i, (name, values, limits) in enumerate(zip(names, found.matrix, found.limit, strict=True)):
        pairs = enumerate(zip(values, limits, strict=True))
        rows.append([name, *("- " if i == j else f"{v:.3f}{'*' if v > edge else ' '}" for j, (v, edge) in pairs)])
    baseline = f"For one pair it is up to {found.noise.max():.3f}; * is above 19 in 20 random splits."
    return [*tables.blocks(to, ["distance, bit", *names], rows), Text(f"{specialisation(report)} {baseline}")]


def specialisation(report: RoutingReport) -> str:
    """One sentence: whether domains load the experts differently."""
    rows = [(layer.layer, layer.domain_distance) for layer in report.layers]
    above = [(layer, distance) for layer, distance in rows if distance is not None and distance.beyond_noise]
    if not above:
        return "The domains load the experts alike: no layer is above the random baseline."
    layer, most = max(above, key=lambda row: row[1].mean)
    return (
        f"The experts specialise by domain, above the random baseline in {len(above)} of {len(rows)} layers; most in "
        f"layer {layer}: {most.mean:.3f} bit, random baseline {most.noise_mean:.3f}."
    )


def favourites(to: Console, analysis: Analysis, layers: Sequence[LayerReport]) -> list[RenderableType]:
    """What each expert is taken for, in the layer whose tokens tell its experts apart best."""
    layer = telling(layers)
    if layer is None:
        return [Text("No token occurs often enough to say what an expert is taken for.")]
    order = sorted(range(layer.experts), key=lambda expert: -_best_lift(layer, expert))[:_EXPERTS]
    room = to.width - 16
    rows: list[list[str | Text]] = [
        [str(expert), number(layer.utilisation[expert]), _tokens(to, analysis, layer, expert, room)]
        for expert in sorted(order)
    ]
    title = tables.title(f"Favourite tokens in layer {layer.layer}", lifts(layer))
    return [tables.Group(title, tables.grid(("expert", "load", "tokens, by lift"), rows, left=(2,)))]


def telling(layers: Sequence[LayerReport]) -> LayerReport | None:
    """The layer whose lift is furthest above that of shuffled choices; None where no token occurs often enough."""
    known = [layer for layer in layers if layer.vocabulary.lift is not None]
    return max(known, default=None, key=_lift_above_shuffled)


def lifts(layer: LayerReport) -> str:
    """The lift of the favourites, beside that of shuffled choices."""
    words = layer.vocabulary
    return f"lift {words.lift:.1f}x, with choices shuffled {words.shuffled_lift:.1f}x (mean of each expert's highest)"


def piece(analysis: Analysis, number: int) -> str:
    """The text of a token id; the id itself where the text is unknown."""
    return analysis.trace.pieces.get(number, f"<{number}>")


def _lift_above_shuffled(layer: LayerReport) -> float:
    return (layer.vocabulary.lift or 0.0) / max(layer.vocabulary.shuffled_lift or 0.0, 1e-9)


def _best_lift(layer: LayerReport, expert: int) -> float:
    tokens = layer.vocabulary.favourites[expert]
    return tokens[0].lift if tokens else 0.0


def _tokens(to: Console, analysis: Analysis, layer: LayerReport, expert: int, room: int) -> Text:
    text = Text()
    for token in layer.vocabulary.favourites[expert]:
        shown = visible(to, piece(analysis, token.id), 16)
        more = Text.assemble("  " if text else "", (shown, "bold"), f" {token.lift:.1f}x")
        if text.cell_len + more.cell_len > room:
            break
        text.append_text(more)
    return text or Text("-")


def notes(analysis: Analysis) -> list[str]:
    """What a reader must know before believing a figure: how it was recorded, and too few tokens."""
    report, lines = analysis.report, [analysis.note] if analysis.note else []
    few = [layer for layer in report.layers if layer.few_tokens]
    if few:
        layer = max(few, key=lambda one: one.noise.mean.max_violation)
        dead = f" and leave {layer.noise.mean.dead:.1f} of them unused" if layer.noise.mean.dead >= 0.1 else ""
        lines.append(
            f"Too few tokens: over {report.tokens:,} tokens a uniform router, too, would show one of "
            f"{layer.experts} experts at {layer.noise.mean.max_violation + 1:.1f}x{dead}. "
            "Hot and cold cells are mostly luck."
        )
    return lines
