"""Heatmaps as rectangles and labels in points: what SVG, PNG, PDF and HTML draw alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moecli.output.routing.heat import Heat, limit_of
from moecli.output.routing.shades import LIMITS

_ACROSS, _DOWN = 760, 520  # points that the cells of one heatmap aim at
_PAGE = 1100  # several stand side by side up to here
_LINE = 16
_CHARACTER = 6  # points, of a small label


@dataclass(frozen=True, slots=True)
class Cell:
    """The rectangle of one expert in one layer, in points; `value` is its utilisation, 1 an even share."""

    x: float
    y: float
    width: float
    height: float
    value: float


@dataclass(frozen=True, slots=True)
class Label:
    """A piece of text; `y` is its base line, `anchor` start, middle or end."""

    x: float
    y: float
    text: str
    anchor: str = "start"
    kind: str = ""  # "strong", "number" (stands on a cell of `value`)
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class HeatBlock:
    """Where one heatmap's cells lie, for a pointer to find them."""

    x: float
    y: float
    width: float  # of a cell
    height: float


@dataclass(frozen=True, slots=True)
class Drawing:
    """Everything that is drawn, the size of the sheet in points, and where the scale of the colours ends."""

    width: int
    height: int
    cells: tuple[Cell, ...]
    labels: tuple[Label, ...]
    blocks: tuple[HeatBlock, ...]
    limit: float


def drawing(heats: Sequence[Heat], title: str = "", subtitle: str = "") -> Drawing:
    """Title and subtitle where there is a title, heatmaps side by side as far as the page goes, legend."""
    cells: list[Cell] = []
    labels = [Label(8, 22, title, kind="strong"), Label(8, 38, subtitle)] if title else []
    head = 60 if title else 16
    blocks: list[HeatBlock] = []
    across, down = _cell_size(heats)
    margin = 14 + _CHARACTER * max(len("layer"), *(len(str(row.layer)) for heat in heats for row in heat.rows))
    wide = margin + max(across * heats[0].experts, *(_CHARACTER * len(heat.title) for heat in heats)) + 16
    tall = max(len(heat.rows) for heat in heats) * down + 64
    abreast = max(1, min(len(heats), int(_PAGE // wide)))
    for number, heat in enumerate(heats):
        left, top = margin + number % abreast * wide, head + number // abreast * tall
        if heat.title:
            labels.append(Label(left, top, heat.title, kind="strong"))
        labels += _axes(heat, left, top + 30, across, down, first=number % abreast == 0)
        blocks.append(HeatBlock(left, top + 36, across, down))
        for line, row in enumerate(heat.rows):
            for column, value in enumerate(row.values):
                cells.append(Cell(left + column * across, top + 36 + line * down, across, down, value))
    limit = limit_of(heats)
    clipped = limit == LIMITS[-1]
    bottom = head + -(-len(heats) // abreast) * tall
    cells += [Cell(8 + step * 18, bottom, 18, 12, limit ** (step / 6 - 1)) for step in range(13)]
    labels += [
        Label(8, bottom + 26, f"{'≤' * clipped}{1 / limit:.2g}x"),
        Label(8 + 6.5 * 18, bottom + 26, "1x: an even share", "middle"),
        Label(8 + 13 * 18, bottom + 26, f"{'≥' * clipped}{limit:g}x", "end"),
        Label(8 + 13 * 18 + 34, bottom + 10, "no token"),
    ]
    cells.append(Cell(8 + 13 * 18 + 14, bottom, 18, 12, 0))
    width = max(8 + wide * abreast, 8 + 13 * 18 + 120, 16 + 7 * max(len(title), len(subtitle)))
    return Drawing(int(width), int(bottom + 36), tuple(cells), tuple(labels), tuple(blocks), limit)


def _cell_size(heats: Sequence[Heat]) -> tuple[float, float]:
    experts, layers = max(heat.experts for heat in heats), max(len(heat.rows) for heat in heats)
    share = 1 if len(heats) == 1 else 3
    return min(max(_ACROSS // share // experts, 3), 48), min(max(_DOWN // share // layers, 6), 24)


def _axes(heat: Heat, left: float, top: float, across: float, down: float, first: bool) -> list[Label]:
    """Expert numbers above the columns, layer numbers before the rows, values where there is room."""
    every = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128) if step * across >= _CHARACTER * 4 or step == 128)
    labels = [
        Label(left + (column + 0.5) * across, top, str(column + heat.sorted), "middle")
        for column in range(0, heat.experts, every)
    ]
    named = across >= (_CHARACTER + 1) * (len(str(heat.experts)) if heat.sorted else len("0.00"))
    what = "expert" if not heat.sorted else "rank by load; in the cells the expert" if named else "rank by load"
    labels.append(Label(left, top - 14, what))
    thin = -(-_LINE // max(int(down * 1.5), 1))
    for line, row in enumerate(heat.rows):
        base = top + 6 + (line + 0.5) * down + 4
        if line % thin == 0:
            labels.append(Label(left - 6, base, str(row.layer), "end"))
        for column, (expert, value) in enumerate(zip(row.experts, row.values, strict=True)):
            inside = str(expert) if heat.sorted else f"{value:.2f}"
            if value > 0 and named:
                labels.append(Label(left + (column + 0.5) * across, base, inside, "middle", "number", value))
    if first:
        labels.append(Label(left - 6, top, "layer", "end"))
    return labels
