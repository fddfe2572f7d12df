"""The heatmap in the terminal: a row for each layer, a cell for each expert, as many as the width has room for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from moecli.output.routing import shades
from moecli.output.routing.heat import Heat, limit_of

_NUMBER = 7  # columns of a cell that shows its value: a gap, the glyph, a gap, 1.25
_WIDEST = 9
_BUSIEST = 3  # experts named after a sorted row
_GAP = 3  # between heatmaps side by side


def blocks(to: Console, heats: Sequence[Heat]) -> list[Text]:
    """One heatmap over the whole width; several side by side as far as they fit, then below each other."""
    abreast = _abreast(to.width, heats)
    width = (to.width - _GAP * (abreast - 1)) // abreast
    drawn = [_lines(to, heat, width, abreast == 1, limit_of(heats)) for heat in heats]
    used = max(line.cell_len for lines in drawn for line in lines)
    return [_side_by_side(drawn[start : start + abreast], used) for start in range(0, len(drawn), abreast)]


def legend(to: Console, heats: Sequence[Heat]) -> Text:
    """What glyphs, rows and columns mean, and what does not show."""
    marks, heat, limit = shades.glyphs(to), heats[0], limit_of(heats)
    text = Text()
    ends = f"{1 / limit:.2g}x or less", "", "", "1x, an even share", "", "", f"{limit:g}x or more"
    for place, word in enumerate(ends):
        text.append(marks.ramp[place], shades.style(to, place / 6))
        text.append(f" {word}  " if word else " ")
    text.append(f"{marks.dead} no token\n")
    where = (
        "in each cell" if _fit(to.width, heat, _abreast(to.width, heats) == 1)[2] else "of the busiest after each row"
    )
    columns = f"columns: ranks by load, the numbers of the experts {where}" if heat.sorted else "columns: experts"
    text.append(f"rows: layers, {columns}; the scale is fitted to what is shown")
    bins = {_fit(to.width, heat)[0] for heat in heats} if _abreast(to.width, heats) == 1 else {1}
    if max(bins) > 1:
        text.append(f"; a cell is the busiest of {max(bins)} neighbours, the terminal being narrower than the layer")
    return text


def _abreast(width: int, heats: Sequence[Heat]) -> int:
    widest = max(_label(heat) + max(heat.experts + _tail(heat), cell_len(heat.title)) for heat in heats)
    return max(1, min(len(heats), (width + _GAP) // (widest + _GAP)))


def _label(heat: Heat) -> int:
    return max(len(str(row.layer)) for row in heat.rows) + 1


def _digits(heat: Heat) -> int:
    return len(str(heat.experts - 1))


def _tail(heat: Heat) -> int:
    """Columns after a sorted row for the numbers of its busiest experts, where its cells have no room for them."""
    return 1 + _BUSIEST * (1 + _digits(heat)) if heat.sorted else 0


def _fit(width: int, heat: Heat, roomy: bool = True) -> tuple[int, int, bool]:
    """How many experts share a cell, how many columns a cell has, and whether that is enough for a sorted expert's
    number."""
    for tail, least in ((0, _digits(heat) + 2 if heat.sorted else 1), (_tail(heat), 1)):
        room = width - _label(heat) - tail
        per = -(-heat.experts // room)
        columns = min(room // -(-heat.experts // per), _WIDEST if roomy else 2)
        if columns >= least:
            break
    return per, columns, tail == 0


def _lines(to: Console, heat: Heat, width: int, roomy: bool, limit: float) -> list[Text]:
    per, columns, named = _fit(width, heat, roomy)
    label = _label(heat)
    lines = [Text(heat.title, "bold")] if heat.title else []
    for line in lines:
        line.truncate(width)
    lines.append(Text(" " * label + _ticks(heat, per, columns), "dim"))
    for row in heat.rows:
        line = Text.assemble((f"{row.layer:>{label - 1}} ", "dim"))
        for start in range(0, len(row.values), per):
            value = max(row.values[start : start + per])  # a mean would hide a hot expert
            expert = f"{row.experts[start]:<{_digits(heat)}}" if heat.sorted and named else ""
            _cell(to, line, value, shades.position(value, limit), columns, expert)
        if not named:
            busiest = zip(row.experts[:_BUSIEST], row.values, strict=False)
            line.append(" " + "".join(f" {expert:>{_digits(heat)}}" for expert, value in busiest if value), "dim")
        lines.append(line)
    return lines


def _cell(to: Console, line: Text, value: float, place: float, columns: int, expert: str) -> None:
    """A glyph as wide as there is room for, the number of a sorted expert, the value if it has room too."""
    marks, style = shades.glyphs(to), shades.style(to, place)
    gap = columns > 2
    if value <= 0 and not expert:
        line.append(marks.dead.center(columns - gap) + " " * gap, "dim")
        return
    said = f" {expert}" if expert else ""
    if columns - len(said) >= _NUMBER:
        said += f" {number(value):<4}"
    if said or gap:
        said += " "
    wide = columns - len(said)
    if value <= 0:
        line.append(f"{marks.dead.center(wide)}{said}", "dim")
    else:
        line.append(shades.glyph(marks, place) * wide, style)
        line.append(said, style if len(said) > 1 else "")


def number(value: float) -> str:
    """Utilisation in four columns: 0.04, 1.25, 12.5, 256."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _ticks(heat: Heat, per: int, columns: int) -> str:
    """The number of the first expert of a cell, or its rank from 1 on, over as many cells as have room for it."""
    every = -(-(len(str(heat.experts - 1)) + 1) // columns)
    every = next((step for step in (1, 2, 4, 5, 8, 10, 16, 20, 32, 64) if step >= every), every)
    cells = range(0, -(-heat.experts // per), every)
    text = "".join(f"{cell * per + heat.sorted}".ljust(every * columns) for cell in cells)
    return text.rstrip()[: -(-heat.experts // per) * columns]


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
