"""Tokens made visible: white space has a mark, and nothing in them can move the cursor or turn the line around."""

from __future__ import annotations

import unicodedata

from rich.cells import cell_len, chop_cells
from rich.console import Console

from moecli.errors import escaped
from moecli.output.routing import shades


def visible(to: Console, text: str, width: int | None = None) -> str:
    """What a stream can show of a token, at least one column, cut to `width` columns."""
    marks = shades.glyphs(to)
    shown = plain(text, marks.space, marks.line_end, marks.tab)
    shown = shown.encode(to.encoding, "replace").decode(to.encoding)
    if width is not None and cell_len(shown) > width:
        shown = chop_cells(shown, width - 1)[0] + marks.cut
    return shown


def plain(text: str, space: str = "·", line_end: str = "↵", tab: str = "→") -> str:
    """Spaces, line ends and tabs as marks; controls, format characters and lone combining marks as escapes."""
    named = {" ": space, "\n": line_end, "\t": tab}
    return "".join(named.get(letter) or _safe(letter) for letter in text) or "''"


def name(text: str, most: int = 60) -> str:
    """A name that a stranger gave, of a model or a domain, on one line and not endless."""
    shown = plain(text, " ", " ", " ")
    return shown if cell_len(shown) <= most else f"{chop_cells(shown, most - 3)[0]}..."


def _safe(letter: str) -> str:
    return escaped(letter) if unicodedata.category(letter)[0] in "CZM" else letter
