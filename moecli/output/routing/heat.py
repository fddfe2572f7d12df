"""What a heatmap shows, whatever draws it: utilisation by layer and expert, of all tokens or of one domain's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from moecli.errors import UsageError
from moecli.output.routing import shades
from moecli.output.routing.words import name
from moecli.routing.report import LayerReport, RoutingReport
from moecli.routing.trace import RoutingTrace


@dataclass(frozen=True, slots=True)
class View:
    """Which part of a report, and how: given layers only, rows ordered by load, a heatmap for each domain; of a picture
    its title (None: the model's; empty: none), one of shades.COLORMAPS and the dots per inch of a PNG."""

    layers: tuple[int, ...] | None = None
    sort: bool = False
    by_domain: bool = False
    title: str | None = None
    colormap: str = "diverging"
    dpi: int = 300


@dataclass(frozen=True, slots=True)
class HeatRow:
    """One layer: utilisation of each expert, 0 for one that no token took, and the numbers of these experts."""

    layer: int
    values: tuple[float, ...]
    experts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Heat:
    """One heatmap. Sorted: columns are ranks within each row, busiest first."""

    title: str
    rows: tuple[HeatRow, ...]
    sorted: bool

    @property
    def experts(self) -> int:
        """Columns: the experts of the widest layer."""
        return max(len(row.values) for row in self.rows)


def chosen(report: RoutingReport, layers: Sequence[int] | None) -> RoutingReport:
    """The report of these layers alone. UsageError for a layer that the trace lacks."""
    if layers is None:
        return report
    known = [layer.layer for layer in report.layers]
    if missing := sorted(set(layers) - set(known)):
        raise UsageError(
            f"layer {missing[0]} has no recorded routing", f"the trace has layers {_ranges(known)}; name some of these"
        )
    kept = [place for place, layer in enumerate(known) if layer in set(layers)]
    distances = report.domain_distances
    if distances is not None:
        distances = replace(distances, layers=tuple(distances.layers[place] for place in kept))
    return replace(report, layers=tuple(report.layers[place] for place in kept), domain_distances=distances)


def heats(report: RoutingReport, view: View) -> tuple[Heat, ...]:
    """One heatmap, or one for each domain."""
    if not view.by_domain:
        return (heat(report, view.sort),)
    return tuple(
        Heat(
            f"{domain_name(domain)}, {tokens:,} tokens",
            tuple(_row(layer.layer, _utilisation(layer.by_domain[place]), view.sort) for layer in report.layers),
            view.sort,
        )
        for place, (domain, tokens) in enumerate(zip(report.domains, report.domain_tokens, strict=True))
    )


def heat(report: RoutingReport, sort: bool = False, title: str = "", layers: Collection[int] | None = None) -> Heat:
    """All tokens, in all layers or those of `layers` that there are."""
    kept = [layer for layer in report.layers if layers is None or layer.layer in layers]
    return Heat(title, tuple(_row(layer.layer, layer.utilisation, sort) for layer in kept), sort)


def heat_of(trace: RoutingTrace, title: str = "") -> Heat:
    """All tokens of a trace, without its other figures."""
    rows = (_row(each.layer, _utilisation(tuple(each.counts().tolist())), False) for each in trace.layers)
    return Heat(title, tuple(rows), False)


def limit_of(heats: Sequence[Heat]) -> float:
    """Where the one scale of these heatmaps ends, fitted to what they show: 1 / limit to limit."""
    return shades.limit_of(value for heat in heats for row in heat.rows for value in row.values)


def domain_name(domain: str) -> str:
    """The name of a domain as it stands above a heatmap and beside a row."""
    return name(domain, 18) if domain else "no domain"


def panels(layers: Sequence[LayerReport]) -> list[LayerReport]:
    """The first, the middle and the last of these layers."""
    return [layers[place] for place in sorted({0, (len(layers) - 1) // 2, len(layers) - 1})]


def _utilisation(counts: tuple[int, ...]) -> tuple[float, ...]:
    mean = sum(counts) / len(counts)
    return tuple(count / mean if mean else 0.0 for count in counts)


def _row(layer: int, values: tuple[float, ...], sort: bool) -> HeatRow:
    experts = range(len(values))
    order = tuple(sorted(experts, key=lambda expert: -values[expert]) if sort else experts)
    return HeatRow(layer, tuple(values[expert] for expert in order), order)


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in words, runs joined: 0-3, 7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in parts)
