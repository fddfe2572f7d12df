"""The tables beside a heatmap: figures over the layers, domains, favourite tokens, and what to know first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console, RenderableType
from rich.text import Text

from moecli.output import tables
from moecli.output.routing import shades
from moecli.output.routing.figures import Layered
from moecli.output.routing.heat import domain_name
from moecli.output.routing.heatmap import number
from moecli.output.routing.words import visible
from moecli.routing.analysis import Analysis
from moecli.routing.permutation import FEWEST_PROMPTS
from moecli.routing.report import LayerReport, RoutingReport

_FIXED = 70  # columns of the table of figures without its sparklines
_NARROW = 41  # the same without the furthest layer
_FEWEST = 3  # glyphs of a sparkline
_EXPERTS = 8  # with favourites


def by_layer(to: Console, rows: Sequence[Layered]) -> list[RenderableType]:
    """A row for each metric, its layers as a sparkline where there is room, and how to read that."""
    layers = rows[0].layers
    wide = to.width >= _FIXED + min(len(layers), 6)
    room = min(len(layers), to.width - (_FIXED if wide else _NARROW))
    span = f"layers {layers[0]}-{layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"
    header = ["figure", span if room >= len(span) else "", "mean", "uniform"]
    header += ["chance", "furthest", "beyond chance"] if wide else ["beyond"]
    cells: list[list[str | Text]] = []
    for row in rows:
        layer, value = row.furthest
        furthest = f"{layer}: {row.format(value)}" if value else ""
        known = row.called is not None
        beyond = "" if row.called is None else f"{sum(row.called)} of {len(layers)}" if wide else f"{sum(row.called)}"
        mean = "" if row.mean is None else row.format(row.mean)
        chance = row.format(row.chance_mean) if known and row.chance_mean is not None else ""
        more = [chance, furthest, beyond] if wide else [beyond]
        cells.append([row.overall or row.name, _spark(to, row, room), mean, _uniform(row), *more])
    ramp = shades.glyphs(to).ramp
    legend = f"{ramp[0]} as chance at most, {ramp[-1]} the furthest of its row; without chance, from least to most"
    return [tables.grid(header, cells, left=(0, 1)), *([Text(legend, "dim")] if room >= _FEWEST else [])]


def _uniform(row: Layered) -> str:
    """What a uniform router shows, in the mean or in the layer where it shows most."""
    if row.uniform_mean is not None:
        return row.format(row.uniform_mean)
    return row.format(max(row.uniform)) if row.uniform else ""


def chance(report: RoutingReport) -> list[str]:
    """What chance is in the figures by layer, and which verdicts are withheld for want of prompts."""
    lines = []
    if any(layer.chances for layer in report.layers):
        lines.append(
            "Chance takes prompts as its unit, since tokens of one prompt are alike: loads of prompts drawn anew "
            "around an even share, repeats with each prompt's tokens in random order, JSD with the prompts dealt to "
            "other domains. By luck 1 row in 40 is beyond it."
        )
    elif max(layer.experts for layer in report.layers) > 1:
        prompts = "1 prompt" if report.prompts == 1 else f"{report.prompts} prompts"
        lines.append(
            f"No verdict on loads and repeats: {prompts} cannot be told from chance, {FEWEST_PROMPTS} can (2 of the "
            "128 ways to exchange what differs lie on one side)."
        )
    return lines


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
    """Divergences between domains, and what they say; nothing for one domain."""
    if (found := report.domain_distances) is None:
        return []
    names = [domain_name(domain) for domain in report.domains]
    rows = []
    for i, name in enumerate(names):
        row = enumerate(zip(found.matrix[i], found.beyond[i], strict=True))
        rows.append([name, *("- " if i == j else f"{value:.3f}{'*' if star else ' '}" for j, (value, star) in row)])
    title = tables.title("Domains", "Jensen-Shannon divergence (JSD) of their loads, bit, mean over layers")
    first, *others = tables.blocks(to, ["JSD, bit", *names], rows)
    said = Text(" ".join([specialisation(report), *pairs_of_domains(report)]))
    return [tables.Group(title, first), *others, said]


def specialisation(report: RoutingReport) -> str:
    """One sentence: whether domains load the experts differently, or why that cannot be said."""
    found = report.domain_distances
    assert found is not None, "there is one domain"
    enough = "5 prompts of each are enough"
    if not found.tested:
        if sum(count > 1 for count in found.prompts) < 2:
            return (
                "No verdict on the domains: with one prompt of a domain, domain and prompt cannot be told apart; "
                f"{enough}."
            )
        return (
            f"No verdict on the domains: so few prompts can be dealt to them in {round(1 / found.smallest_p)} ways "
            f"only, and no p-value is below {found.smallest_p:.2f}; {enough}."
        )
    rows = [(layer.layer, distance) for layer, distance in zip(report.layers, found.layers, strict=True)]
    above = [row for row in rows if row[1].chance is not None and row[1].chance.beyond]
    alone = [domain_name(name) for name, count in zip(report.domains, found.prompts, strict=True) if count == 1]
    left_out = f" Left out, with one prompt each: {', '.join(alone)}." if alone else ""
    if not above:
        return f"The domains do not load the experts differently beyond chance, in any layer.{left_out}"
    layer, most = max(above, key=lambda row: row[1].mean)
    assert most.chance is not None
    return (
        f"The experts specialise by domain, beyond chance in {len(above)} of {len(rows)} layers; most in layer "
        f"{layer}: {most.mean:.3f} bit, and {most.chance.mean:.3f} with the prompts dealt to the domains at random."
        f"{left_out}"
    )


def pairs_of_domains(report: RoutingReport) -> list[str]:
    """What the stars between two domains mean; empty where none could be."""
    found = report.domain_distances
    if found is None or not found.tested or np.isnan(found.noise).all():
        return []
    highest = float(np.nanmax(found.noise))
    return [f"For one pair chance is up to {highest:.3f}; * is beyond it, 1 star in 40 by luck."]


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
    return (
        f"lift {words.lift:.1f}x, with choices shuffled in each prompt {words.shuffled_lift:.1f}x "
        "(mean of each expert's highest)"
    )


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
