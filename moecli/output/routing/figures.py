"""The figures of a report as rows: one for each metric, over the layers, beside what a uniform router shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moecli.output.routing.heatmap import number
from moecli.output.tables import percent
from moecli.routing.analysis import Analysis


@dataclass(frozen=True, slots=True)
class Layered:
    """One metric. `floor` is what chance reaches in each layer, where it is known."""

    name: str
    layers: tuple[int, ...]
    values: tuple[float, ...]
    uniform: tuple[float, ...] | None = None
    floor: tuple[float, ...] | None = None
    beyond: int | None = None  # layers further from chance than the floor
    mean: float | None = None  # from the report
    uniform_mean: float | None = None
    falls: bool = False  # further from chance is lower
    overall: str = ""  # another name where `mean` is no mean
    format: Callable[[float], str] = number

    @property
    def heights(self) -> tuple[float, ...]:
        """Of each layer in 0..1, relative to the highest: above the floor; without one, above the lowest."""
        sign = -1 if self.falls else 1
        lowest = min(sign * value for value in self.values)
        floors = self.floor or (sign * lowest,) * len(self.values)
        above = [max(sign * (value - floor), 0.0) for value, floor in zip(self.values, floors, strict=True)]
        return tuple(value / (max(above) or 1.0) for value in above)

    def beside(self, place: int) -> str:
        """A layer's value, with a star beyond the floor, and what a uniform router shows: 0.47* (0.09)."""
        value = self.values[place]
        if self.uniform is None:
            return self.format(value)
        sign = -1 if self.falls else 1
        beyond = self.floor is not None and sign * (value - self.floor[place]) > 0
        return f"{self.format(value)}{'*' if beyond else ''} ({self.format(self.uniform[place])})"

    @property
    def furthest(self) -> tuple[int, float]:
        """Layer and value; the first of equals."""
        sign = -1 if self.falls else 1
        place = max(range(len(self.values)), key=lambda place: sign * self.values[place])
        return self.layers[place], self.values[place]


def layered(routing: dict[str, Any]) -> list[Layered]:
    """`routing`: the report as document() gives it. A metric that any layer lacks is left out."""
    rows = [
        _balance(routing, "entropy", "load entropy", falls=True, style=_fine),
        _balance(routing, "max_violation", "max violation"),
        _balance(routing, "cv2", "CV²"),
        _balance(routing, "gini", "Gini"),
        _balance(routing, "dead", "dead experts", overall="dead, in all", style=_count),
        _balance(routing, "repeat_top1", "repeat, first", style=percent),
        _balance(routing, "repeat_any", "repeat, any", style=percent),
        _balance(routing, "mean_overlap", "overlap", style=percent),
        _balance(routing, "gate_entropy", "gate entropy", falls=True, style=_fine),
        _balance(routing, "auxiliary_loss", "auxiliary loss"),
        _balance(routing, "z_loss", "z-loss"),
    ]
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


def distances(routing: dict[str, Any]) -> list[Layered]:
    """Jensen-Shannon distance of the domains in each layer, mean over their pairs. None for one domain."""
    if "domain_distance" not in routing:
        return []
    rows = routing["domain_distance"]["layers"]
    noise = tuple(row["noise"] for row in rows)
    return [
        Layered(
            "domain, bit",
            tuple(row["layer"] for row in rows),
            tuple(row["mean"] for row in rows),
            noise,
            noise,
            sum(row["beyond_noise"] for row in rows),
            format=_fine,
        )
    ]


def _balance(
    routing: dict[str, Any],
    key: str,
    name: str,
    falls: bool = False,
    overall: str = "",
    style: Callable[[float], str] = number,
) -> Layered | None:
    layers = routing["layers"]
    values = tuple(layer[key] for layer in layers)
    if any(value is None for value in values):
        return None

    def of(part: str) -> tuple[float, ...] | None:
        found = tuple(layer[part].get(key) for layer in layers)
        return None if any(value is None for value in found) else found

    limit, means = of("limit"), routing["overall"]
    sign = -1 if falls else 1
    return Layered(
        name,
        tuple(layer["layer"] for layer in layers),
        values,
        of("baseline"),
        limit,
        None if limit is None else sum(sign * (v - edge) > 0 for v, edge in zip(values, limit, strict=True)),
        means[key],
        means["baseline"].get(key),
        falls,
        overall,
        style,
    )


def _fine(value: float) -> str:
    return f"{value:.3f}"


def _count(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
