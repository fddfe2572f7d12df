"""The figures of an analysis as titled tables and sentences: what Markdown and HTML say alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moecli.output.routing import against, cache, figures, paper, sides
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


def sections(analysis: Analysis, report: RoutingReport) -> list[Section]:
    """Every table of the analysis; `report` has the layers that were chosen."""
    layers = tuple(layer.layer for layer in report.layers)
    by_layer = [*figures.layered(report), *figures.distances(report), *figures.overflows(analysis, layers)]
    found = [
        _layers(
            "Layers",
            layers,
            by_layer,
            "In brackets what a uniform router shows; * is above the random baseline: 19 in 20 of them.",
        ),
        *_domains(report),
        *_favourites(analysis, report),
        *_cache(analysis),
    ]
    if analysis.comparison is not None:
        rows = against.agreements(analysis.comparison, layers)
        said = against.sentence(analysis.comparison)
        title = f"Against {name(analysis.comparison.name)}"
        found.append(_layers(title, rows[0].layers, rows, said) if rows else Section(title, (), (), (said,)))
    if analysis.paper is not None:
        for title, header, lines, source in (paper.locality(analysis.paper), paper.shares(analysis.paper)):
            found.append(Section(title, tuple(header), tuple(map(tuple, lines)), (f"* is published: {source}.",)))
    return found


def _layers(title: str, layers: Sequence[int], rows: Sequence[Layered], sentence: str) -> Section:
    return Section(
        title,
        ("layer", *(row.name for row in rows)),
        tuple((str(layer), *(row.beside(place) for row in rows)) for place, layer in enumerate(layers)),
        (sentence,),
    )


def _domains(report: RoutingReport) -> list[Section]:
    if (found := report.domain_distance) is None:
        return []
    names = tuple(map(domain_name, report.domains))
    rows = []
    for i, (domain, values, noises) in enumerate(zip(names, found.matrix, found.noise, strict=True)):
        pairs = enumerate(zip(values, noises, strict=True))
        rows.append((domain, *("-" if i == j else f"{value:.3f} ({noise:.3f})" for j, (value, noise) in pairs)))
    said = (sides.specialisation(report), "In brackets the random baseline.")
    return [Section("Distance between domains, bit", ("", *names), tuple(rows), said)]


def _favourites(analysis: Analysis, report: RoutingReport) -> list[Section]:
    layer = sides.telling(report.layers)
    if layer is None or not analysis.trace.pieces:
        return []
    rows = tuple(
        (
            str(expert),
            number(layer.utilisation[expert]),
            "  ".join(f"{plain(sides.piece(analysis, token.id))} {token.lift:.1f}x" for token in tokens),
        )
        for expert, tokens in enumerate(layer.vocabulary.favourites)
        if tokens
    )
    title, said = f"Favourite tokens in layer {layer.layer}", sides.lifts(layer).capitalize() + "."
    return [Section(title, ("expert", "load", "tokens, by lift"), rows, (said,))]


def _cache(analysis: Analysis) -> list[Section]:
    found = cache.table(analysis)
    if found is None:
        return []
    header, rows = found
    return [Section("Cache", tuple(header), tuple(map(tuple, rows)), tuple(cache.sentences(analysis)))]
