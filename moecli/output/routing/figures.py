"""The figures of a report as rows: one for each metric, over the layers, beside what a uniform router shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from moecli.output.routing.heatmap import number
from moecli.output.tables import percent
from moecli.routing.analysis import Analysis
from moecli.routing.report import Figures, RoutingReport


@dataclass(frozen=True, slots=True)
class Layered:
    """One metric over the layers. `floor` is what only 1 in 20 uniform routers exceeds in each, where it is known."""

    name: str
    layers: tuple[int, ...]
    values: tuple[float, ...]
    uniform: tuple[float, ...] | None = None
    floor: tuple[float, ...] | None = None
    above: int | None = None  # layers above the random baseline: further from even than the floor
    mean: float | None = None  # from the report
    uniform_mean: float | None = None
    falls: bool = False  # less even is lower
    overall: str = ""  # another name where `mean` is no mean
    format: Callable[[float], str] = number

    @property
    def heights(self) -> tuple[float, ...]:
        """The height of each layer in 0..1, relative to the highest: above the floor; without one, above the lowest."""
        sign = -1 if self.falls else 1
        lowest = min(sign * value for value in self.values)
        floors = self.floor or (sign * lowest,) * len(self.values)
        above = [max(sign * (value - floor), 0.0) for value, floor in zip(self.values, floors, strict=True)]
        return tuple(value / (max(above) or 1.0) for value in above)

    def beside(self, place: int) -> str:
        """A layer's value, with a star above the random baseline, and what a uniform router shows: 0.47* (0.09)."""
        value = self.values[place]
        if self.uniform is None:
            return self.format(value)
        sign = -1 if self.falls else 1
        above = self.floor is not None and sign * (value - self.floor[place]) > 0
        return f"{self.format(value)}{'*' if above else ''} ({self.format(self.uniform[place])})"

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
            format=percent,
        )
        for one in analysis.capacity
    ]


def distances(report: RoutingReport) -> list[Layered]:
    """Jensen-Shannon distance of the domains in each layer, mean over their pairs. None for one domain."""
    found = [(layer.layer, layer.domain_distance) for layer in report.layers]
    rows = [(layer, distance) for layer, distance in found if distance is not None]
    if not rows:
        return []
    noise = tuple(distance.noise_mean for _, distance in rows)
    return [
        Layered(
            "domain, bit",
            tuple(layer for layer, _ in rows),
            tuple(distance.mean for _, distance in rows),
            noise,
            noise,
            sum(distance.beyond_noise for _, distance in rows),
            format=_fine,
        )
    ]


def _row(report: RoutingReport, metric: _Metric) -> Layered | None:
    values = _known(metric.key, (layer.figures for layer in report.layers))
    if values is None:
        return None
    limit = _known(metric.key, (layer.limit for layer in report.layers))
    sign = -1 if metric.falls else 1
    return Layered(
        metric.name,
        tuple(layer.layer for layer in report.layers),
        values,
        _known(metric.key, (layer.uniform for layer in report.layers)),
        limit,
        None if limit is None else sum(sign * (v - edge) > 0 for v, edge in zip(values, limit, strict=True)),
        getattr(report.overall, metric.key),
        getattr(report.overall_uniform, metric.key),
        metric.falls,
        metric.overall,
        metric.format,
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
    _Metric("entropy", "load entropy", falls=True, format=_fine),
    _Metric("max_violation", "MaxVio"),
    _Metric("cv2", "CV²"),
    _Metric("gini", "Gini"),
    _Metric("dead", "dead experts", overall="dead, in all", format=_count),
    _Metric("repeat_top1", "repeat, first", format=percent),
    _Metric("repeat_any", "repeat, any", format=percent),
    _Metric("mean_overlap", "overlap", format=percent),
    _Metric("gate_entropy", "gate entropy", falls=True, format=_fine),
    _Metric("auxiliary_loss", "auxiliary loss"),
    _Metric("z_loss", "z-loss"),
)
