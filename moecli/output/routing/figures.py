"""The figures of a report as rows: one for each metric, over the layers, beside a uniform router and chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from moecli.output.routing.heatmap import number
from moecli.output.tables import percent
from moecli.routing.analysis import Analysis
from moecli.routing.permutation import Chance
from moecli.routing.report import Figures, RoutingReport


@dataclass(frozen=True, slots=True)
class Layered:
    """One metric over the layers. `chance` is what other deals of the same prompts show, `floor` what only 1 in 40 of
    them exceeds; None where there is no such comparison, or too few prompts for it."""

    name: str
    layers: tuple[int, ...]
    values: tuple[float, ...]
    uniform: tuple[float, ...] | None = None
    chance: tuple[float, ...] | None = None
    floor: tuple[float, ...] | None = None
    called: tuple[bool, ...] | None = None  # layers beyond chance
    p_values: tuple[float, ...] | None = None
    mean: float | None = None  # from the report
    uniform_mean: float | None = None
    falls: bool = False  # less even is lower
    overall: str = ""  # another name where `mean` is no mean
    title: str = ""  # its standard name where that is longer
    format: Callable[[float], str] = number

    @property
    def chance_mean(self) -> float | None:
        """By chance over all layers, as `mean` is."""
        if self.chance is None:
            return None
        return sum(self.chance) / (1 if self.overall else len(self.chance))

    @property
    def heights(self) -> tuple[float, ...]:
        """The height of each layer in 0..1, relative to the highest: above the floor; without one, above the lowest."""
        sign = -1 if self.falls else 1
        lowest = min(sign * value for value in self.values)
        floors = self.floor or (sign * lowest,) * len(self.values)
        above = [max(sign * (value - floor), 0.0) for value, floor in zip(self.values, floors, strict=True)]
        return tuple(value / (max(above) or 1.0) for value in above)

    def beside(self, place: int) -> str:
        """A layer's value, with a star beyond chance, and what chance shows: 0.47* (0.19)."""
        star = "*" if self.called is not None and self.called[place] else ""
        beside = f" ({self.format(self.chance[place])})" if self.chance is not None else ""
        return f"{self.format(self.values[place])}{star}{beside}"

    @property
    def furthest(self) -> tuple[int, float]:
        """The layer furthest from even, and its value; the first of equals."""
        sign = -1 if self.falls else 1
        place = max(range(len(self.values)), key=lambda place: sign * self.values[place])
        return self.layers[place], self.values[place]


@dataclass(frozen=True, slots=True)
class _Metric:
    """How one of the report's Figures is shown."""

    key: str
    name: str
    falls: bool = False
    overall: str = ""
    title: str = ""
    format: Callable[[float], str] = number


def layered(report: RoutingReport) -> list[Layered]:
    """A row for each metric that every layer of the report has."""
    rows = (_row(report, metric) for metric in _METRICS)
    return [row for row in rows if row is not None]


def overflows(analysis: Analysis, layers: tuple[int, ...]) -> list[Layered]:
    """Share of assignments dropped at each capacity factor."""
    numbers = [layer.layer for layer in analysis.report.layers]
    places = [numbers.index(layer) for layer in layers]
    return [
        Layered(
            f"drop at {one.factor:g}x",
            layers,
            tuple(one.dropped[place] for place in places),
            tuple(one.baseline[place] for place in places),
            mean=sum(one.dropped[place] for place in places) / len(places),
            uniform_mean=sum(one.baseline[place] for place in places) / len(places),
            title=f"dropped at capacity factor {one.factor:g}",
            format=percent,
        )
        for one in analysis.capacity
    ]


def distances(report: RoutingReport) -> list[Layered]:
    """Jensen-Shannon divergence of the domains in each layer, mean over their pairs. None for one domain."""
    if (found := report.domain_distances) is None:
        return []
    chances = [layer.chance for layer in found.layers]
    values = tuple(layer.mean for layer in found.layers)
    return [
        Layered(
            "JSD, bit",
            tuple(layer.layer for layer in report.layers),
            values,
            **by_chance(chances),
            mean=sum(values) / len(values),
            title="Jensen-Shannon divergence, bit",
            format=_fine,
        )
    ]


def by_chance(chances: Sequence[Chance | None]) -> dict[str, Any]:
    """The fields of Layered that hold what chance shows; none if a layer lacks it."""
    known = [each for each in chances if each is not None]
    if len(known) < len(chances):
        return {}
    return {
        "chance": tuple(each.mean for each in known),
        "floor": tuple(each.limit for each in known),
        "called": tuple(each.beyond for each in known),
        "p_values": tuple(each.p_value for each in known),
    }


def _row(report: RoutingReport, metric: _Metric) -> Layered | None:
    values = _known(metric.key, (layer.figures for layer in report.layers))
    if values is None:
        return None
    return Layered(
        metric.name,
        tuple(layer.layer for layer in report.layers),
        values,
        _known(metric.key, (layer.uniform for layer in report.layers)),
        **by_chance([layer.chances.get(metric.key) for layer in report.layers]),
        mean=getattr(report.overall, metric.key),
        uniform_mean=getattr(report.overall_uniform, metric.key),
        falls=metric.falls,
        overall=metric.overall,
        title=metric.title,
        format=metric.format,
    )


def _known(key: str, layers: Iterable[Figures]) -> tuple[float, ...] | None:
    """One figure of each layer; None where a layer lacks it."""
    values = tuple(getattr(figures, key) for figures in layers)
    return values if all(value is not None and math.isfinite(value) for value in values) else None


def _fine(value: float) -> str:
    return f"{value:.3f}"


def _count(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


_METRICS = (
    _Metric("entropy", "norm. entropy", falls=True, title="normalised entropy", format=_fine),
    _Metric("max_violation", "MaxVio"),
    _Metric("cv2", "CV²"),
    _Metric("gini", "Gini"),
    _Metric("dead", "dead experts", overall="dead, in all", format=_count),
    _Metric("repeat_top1", "repeat, first", title="repeated first choice", format=percent),
    _Metric("repeat_any", "repeat, any", title="repeated choice", format=percent),
    _Metric("mean_overlap", "overlap", title="mean overlap", format=percent),
    _Metric("foreseen", "foreseen", title="foreseen before the layer", format=percent),
    _Metric("gate_entropy", "gate entropy", falls=True, title="normalised gate entropy", format=_fine),
    _Metric("auxiliary_loss", "auxiliary loss"),
    _Metric("z_loss", "z-loss"),
)
