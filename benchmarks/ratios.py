"""Figures of several programs over several rounds, as Markdown tables: ratios, and shares of the memory bandwidth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.models import Model
from benchmarks.sides import Figures, Side, Work, decode
from moecli.planning.memory import kv_bytes_per_token


@dataclass(slots=True)
class Samples:
    """Tokens per second by shape, side and what was measured, one for each round; and bytes per second of RAM."""

    rates: dict[tuple[str, str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    bandwidths: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # in words

    @property
    def bandwidth(self) -> float:
        """The median."""
        return median(self.bandwidths)

    def add(self, model: Model, side: Side, figures: Figures, suffix: str = "") -> None:
        for what, rate in figures.items():
            self.rates[model.shape, side.name, what + suffix].append(rate)

    def rate(self, model: Model, side: Side, what: str) -> float | None:
        """The median; None where nothing was measured."""
        found = self.rates.get((model.shape, side.name, what))
        return median(found) if found else None


def ratios(model: Model, programs: Sequence[Side], samples: Samples, names: Sequence[str]) -> Iterator[str]:
    """The lines of one shape's table. Ratios are of the first program to each other."""
    first, *others = programs
    yield from _head(model.shape, first.name, *(cell for side in others for cell in (side.name, "ratio")))
    for what in names:
        rate = samples.rate(model, first, what)
        cells = [what, _figure(rate)]
        for side in others:
            other = samples.rate(model, side, what)
            cells += [_figure(other), f"{rate / other:.2f}x" if rate and other else "-"]
        yield _row(*cells)


def shares(models: Sequence[Model], programs: Sequence[Side], samples: Samples, work: Work) -> Iterator[str]:
    """What a decoded token reads, weights and cache, in MB, and the share of the bandwidth that this makes."""
    yield from _head("MB per token", *(cell for side in programs for cell in (side.name, "bandwidth")))
    for model in models:
        for depth in work.depths:
            cells = [f"{model.shape}, {decode(depth)}"]
            cache = (depth + work.tokens / 2) * kv_bytes_per_token(model.spec)
            for side in programs:
                read = side.read_bytes_per_token(model) + cache
                rate = samples.rate(model, side, decode(depth))
                cells += [f"{read / 1e6:,.0f}", f"{rate * read / samples.bandwidth:.0%}" if rate else "-"]
            yield _row(*cells)


def _head(*cells: str) -> Iterator[str]:
    yield _row(*cells)
    yield _row(*("---" for _ in cells))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _figure(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"
