"""Text coloured by the first expert of each token, with a row of marks under it that says the same without colour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from moecli.output.routing import shades
from moecli.output.routing.heat import domain_name
from moecli.output.routing.words import visible
from moecli.routing.analysis import Analysis
from moecli.routing.report import LayerReport

_COLOURED = len(shades.OKABE_ITO)
_LINES = 4  # of text, of one domain; of each of several one
_LETTERS = "abcdefgh"


@dataclass(frozen=True, slots=True)
class Legend:
    """The experts that have a colour, and the mark of each expert."""

    coloured: tuple[int, ...]
    letters: bool  # else an expert's mark is its number

    def colour(self, expert: int) -> int | None:
        """The number of an expert's colour; None for those that share one."""
        return self.coloured.index(expert) if expert in self.coloured else None

    def mark(self, expert: int, rest: str) -> str:
        """What stands under a token of this expert; `rest` for experts that share a colour and have no letter."""
        if not self.letters:
            return str(expert)
        return _LETTERS[self.coloured.index(expert)] if expert in self.coloured else rest


def legend_of(layer: LayerReport, shown: Sequence[int]) -> Legend:
    """The eight experts that most of the tokens shown take first, in the order of their numbers; marks are digits as
    long as these have one column. `shown`: the first choice of each token."""
    often = Counter(shown)
    busiest = sorted(range(layer.experts), key=lambda expert: (-often[expert], -layer.counts[expert]))[:_COLOURED]
    return Legend(tuple(sorted(busiest)), layer.experts > 10)


def excerpts(analysis: Analysis) -> list[tuple[str, int, int]]:
    """Domain, first token and end of the first prompt of each domain."""
    trace = analysis.trace
    found = []
    for place, name in enumerate(trace.domains):
        mine = np.flatnonzero(trace.domain == place)
        if len(mine):
            start = int(mine[0])
            others = np.flatnonzero(trace.prompt[start:] != trace.prompt[start])
            found.append((name, start, start + int(others[0]) if len(others) else trace.tokens))
    return found


def panel(to: Console, analysis: Analysis, layer: LayerReport) -> Text:
    """The beginning of each domain as one layer routes it."""
    marks = shades.glyphs(to)
    chosen = next(one.chosen for one in analysis.trace.layers if one.layer == layer.layer)
    parts = [(domain_name(domain), start, end) for domain, start, end in excerpts(analysis)]
    margin = min(max(cell_len(name) for name, *_ in parts) + 2, to.width // 2) if len(parts) > 1 else 0
    wrapped: list[tuple[str, list[list[tuple[str, int]]]]] = []
    for name, start, end in parts:
        tokens = ((visible(to, analysis.text_of(t), to.width - margin), int(chosen[t, 0])) for t in range(start, end))
        wrapped.append((name, _wrapped(tokens, to.width - margin, most=1 if len(parts) > 1 else _LINES)))
    key = legend_of(layer, [expert for _, rows in wrapped for row in rows for _, expert in row])
    text = Text.assemble((f"Layer {layer.layer}", "bold"), "  ", _legend(to, key, layer.experts))
    for name, rows in wrapped:
        for number, row in enumerate(rows):
            text.append("\n").append(set_cell_size(name if number == 0 else "", margin), "cyan")
            for piece, expert in row:
                text.append(piece, shades.category(to, key.colour(expert)))
            text.append("\n" + " " * margin)
            for piece, expert in row:
                text.append(key.mark(expert, marks.dead).ljust(cell_len(piece)), "dim")
    return text


def _legend(to: Console, key: Legend, experts: int) -> Text:
    text = Text("first choice: ")
    for expert in key.coloured:
        text.append(f" {key.mark(expert, '')} ", shades.category(to, key.colour(expert)))
        text.append(f" {expert}  " if key.letters else " ")
    if experts > len(key.coloured):
        text.append("others", shades.category(to, None))
    return text


def _wrapped(tokens: Iterable[tuple[str, int]], width: int, most: int) -> list[list[tuple[str, int]]]:
    """Rows of whole tokens, the first `most`."""
    rows: list[list[tuple[str, int]]] = [[]]
    left = width
    for piece, expert in tokens:
        if cell_len(piece) > left:
            if len(rows) == most:
                break
            rows.append([])
            left = width
        rows[-1].append((piece, expert))
        left -= cell_len(piece)
    return rows
