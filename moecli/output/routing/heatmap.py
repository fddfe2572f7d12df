"""The heatmap in the terminal: a row for each layer, a cell for each expert, as many as the width has room for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from moecli.output.routing import shades
from moecli.output.routing.heat import Heat, HeatRow

_NUMBER = 7  # columns of a cell that shows its value: a gap, the glyph, a gap, 1.25
_WIDEST = 9
_GAP = 3  # between heatmaps side by side


def blocks(to: Console, heats: Sequence[Heat]) -> list[Text]:
    """One heatmap over the whole width; several side by side as far as they fit, then below each other."""
    abreast = _abreast(to.width, heats)
    width = (to.width - _GAP * (abreast - 1)) // abreast
    drawn = [_lines(to, heat, width, roomy=abreast == 1) for heat in heats]
    used = max(line.cell_len for lines in drawn for line in lines)
    return [_side_by_side(drawn[start : start + abreast], used) for start in range(0, len(drawn), abreast)]


def legend(to: Console, heats: Sequence[Heat]) -> Text:
    """What glyphs, rows and columns mean, and what does not show."""
    marks, heat = shades.glyphs(to), heats[0]
    text = Text()
    for place, word in enumerate(("1/4 or less", "", "", "1x, an even share", "", "", "4x or more")):
        text.append(marks.ramp[place], shades.style(to, 4 ** ((place - 3) / 3)))
        text.append(f" {word}  " if word else " ")
    text.append(f"{marks.dead} no token\n")
    columns = "columns: experts by load, busiest left" if heat.sorted else "columns: experts"
    text.append(f"rows: layers, {columns}")
    bins = {_fit(to.width, heat)[0] for heat in heats} if _abreast(to.width, heats) == 1 else {1}
    if max(bins) > 1:
        text.append(f"; a cell is the busiest of {max(bins)} neighbours, the terminal being narrower than the layer")
    return text


def _abreast(width: int, heats: Sequence[Heat]) -> int:
    widest = max(_label(heat) + max(heat.experts, cell_len(heat.title)) for heat in heats)
    return max(1, min(len(heats), (width + _GAP) // (widest + _GAP)))


def _label(heat: Heat) -> int:
    return max(len(str(row.layer)) for row in heat.rows) + 1


def _fit(width: int, heat: Heat) -> tuple[int, int]:
    """How many experts share a cell, and how many columns a cell has."""
    room = width - _label(heat)
    per = -(-heat.experts // room)
    return per, min(room // -(-heat.experts // per), _WIDEST)


def _lines(to: Console, heat: Heat, width: int, roomy: bool) -> list[Text]:
    per, columns = _fit(width, heat)
    columns = columns if roomy else min(columns, 2)
    label = _label(heat)
    lines = [Text(heat.title, "bold")] if heat.title else []
    for line in lines:
        line.truncate(width)
    lines.append(Text(" " * label + _ticks(heat.experts, per, columns), "dim"))
    marks = shades.glyphs(to)
    for row in heat.rows:
        line = Text.assemble((f"{row.layer:>{label - 1}} ", "dim"))
        for value in _binned(row, per):
            _cell(to, line, marks, value, columns)
        lines.append(line)
    return lines


def _binned(row: HeatRow, per: int) -> Iterator[float]:
    """The busiest of each few neighbours: a mean would hide a hot expert."""
    for start in range(0, len(row.values), per):
        yield max(row.values[start : start + per])


def _cell(to: Console, line: Text, marks: shades.Glyphs, value: float, columns: int) -> None:
    style = shades.style(to, value)
    gap = columns > 2
    if value <= 0:
        line.append(marks.dead.center(columns - gap) + " " * gap, "dim")
        return
    mark = shades.glyph(marks, shades.position(value))
    if columns >= _NUMBER:
        line.append(mark * (columns - _NUMBER + 1), style)
        line.append(f" {number(value):<4} ", style)
    else:
        line.append(mark * (columns - gap), style)
        line.append(" " * gap)


def number(value: float) -> str:
    """Utilisation in four columns: 0.04, 1.25, 12.5, 256."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _ticks(experts: int, per: int, columns: int) -> str:
    """The number of the first expert of a cell, over as many cells as have room for it."""
    every = -(-(len(str(experts - 1)) + 1) // columns)
    every = next((step for step in (1, 2, 4, 5, 8, 10, 16, 20, 32, 64) if step >= every), every)
    cells = range(0, -(-experts // per), every)
    text = "".join(str(cell * per).ljust(every * columns) for cell in cells)
    return text.rstrip()[: -(-experts // per) * columns]


def _side_by_side(parts: Sequence[Sequence[Text]], width: int) -> Text:
    rows = []
    for lines in zip_longest(*parts, fillvalue=Text()):
        row = Text()
        for index, line in enumerate(lines):
            if index:
                row.append(" " * _GAP)
            row.append_text(line)
            if index < len(lines) - 1:
                row.append(" " * (width - line.cell_len))
        rows.append(row)
    return Text("\n").join(rows)
