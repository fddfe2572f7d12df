"""The figures of an analysis as titled tables and sentences: what Markdown and HTML say alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moecli.output.routing import against, cache, definitions, figures, paper, sides
from moecli.output.routing.figures import Layered
from moecli.output.routing.heat import domain_name
from moecli.output.routing.heatmap import number
from moecli.output.routing.words import name, plain
from moecli.routing.analysis import Analysis
from moecli.routing.report import RoutingReport


@dataclass(frozen=True, slots=True)
class Section:
    """A title, a table whose first column names its rows, and what it says."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    sentences: tuple[str, ...] = ()
    texts: bool = False  # its cells are words, not numbers


def sections(analysis: Analysis, report: RoutingReport) -> list[Section]:
    """Every table of the analysis; `report` has the layers that were chosen."""
    layers = tuple(layer.layer for layer in report.layers)
    by_layer = [*figures.layered(report), *figures.distances(report), *figures.overflows(analysis, layers)]
    found = [
        _layers(
            "Layers",
            layers,
            by_layer,
            ("In brackets what chance shows; * is beyond it.", *sides.chance(report)),
        ),
        *_against(analysis, layers),
        *_domains(report),
        *_favourites(analysis, report),
        *_cache(analysis),
    ]
    if analysis.paper is not None:
        for title, header, lines, source in (paper.locality(analysis.paper), paper.shares(analysis.paper)):
            found.append(Section(title, tuple(header), tuple(map(tuple, lines)), (f"* is published: {source}.",)))
    found.append(Section("Definitions", ("figure", "what it is"), definitions.rows(), texts=True))
    if analysis.provenance:
        rows = tuple((key, plain(value, " ", " ", " ")) for key, value in analysis.provenance.items())
        found.append(Section("Provenance", ("", ""), rows, texts=True))
    return found


def _layers(title: str, layers: Sequence[int], rows: Sequence[Layered], sentences: Sequence[str]) -> Section:
    uniform = tuple("" if row.uniform is None else row.format(max(row.uniform)) for row in rows)
    return Section(
        title,
        ("layer", *(row.name for row in rows)),
        (
            *((str(layer), *(row.beside(place) for row in rows)) for place, layer in enumerate(layers)),
            ("uniform router", *uniform),
        ),
        tuple(sentences),
    )


def _against(analysis: Analysis, layers: tuple[int, ...]) -> list[Section]:
    if (comparison := analysis.comparison) is None:
        return []
    rows, said = against.agreements(comparison, layers), against.sentence(comparison)
    title = f"Against {name(comparison.name)}"
    return [_layers(title, rows[0].layers, rows, (said,)) if rows else Section(title, (), (), (said,))]


def _domains(report: RoutingReport) -> list[Section]:
    if (found := report.domain_distances) is None:
        return []
    names = tuple(map(domain_name, report.domains))
    rows = []
    for i, domain in enumerate(names):
        row = enumerate(zip(found.matrix[i], found.noise[i], found.beyond[i], strict=True))
        rows.append((domain, *("-" if i == j else _beside(*cell) for j, cell in row)))
    said = (sides.specialisation(report), *sides.pairs_of_domains(report), "In brackets what chance shows.")
    return [Section("Jensen-Shannon divergence between domains, bit", ("", *names), tuple(rows), said)]


def _beside(value: float, chance: float, star: bool) -> str:
    return f"{value:.3f}{'*' if star else ''}" + ("" if math.isnan(chance) else f" ({chance:.3f})")


def _favourites(analysis: Analysis, report: RoutingReport) -> list[Section]:
    layer = sides.telling(report.layers)
    if layer is None or not analysis.trace.pieces:
        return []
    rows = tuple(
        (
            str(expert),
            number(layer.utilisation[expert]),
            "  ".join(f"{plain(sides.piece(analysis, token.id))} {token.lift:.1f}x" for token in tokens) or "-",
        )
        for expert, tokens in enumerate(layer.vocabulary.favourites)
    )
    title, said = f"Favourite tokens in layer {layer.layer}", sides.lifts(layer).capitalize() + "."
    return [Section(title, ("expert", "load", "tokens, by lift"), rows, (said,), texts=True)]


def _cache(analysis: Analysis) -> list[Section]:
    found = cache.table(analysis)
    if found is None:
        return []
    header, rows = found
    return [Section("Cache", tuple(header), tuple(map(tuple, rows)), tuple(cache.sentences(analysis)))]
