"""Heatmaps as SVG, written by hand: one path for each shade; light in a file, on a page as the reader has it set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

from moecli.output.routing import shades
from moecli.output.routing.drawing import Cell, Drawing

SHADES = 25
_FORBIDDEN = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff\\ufffe\\uffff]")


def document(drawn: Drawing, title: str, colormap: str, provenance: Mapping[str, str] | None = None) -> str:
    """The SVG file, with its style and where it comes from in it; light everywhere, for print."""
    made = "\n".join(text(f"{key}: {value}") for key, value in (provenance or {}).items())
    described = f"<desc>{made}</desc>" if made else ""
    return element(drawn, title, f"{described}<style>{style(colormap)}</style>") + "\n"


def element(drawn: Drawing, title: str, inside: str = "") -> str:
    """The <svg> element; its style() must be in it or on the page."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="heat" role="img" viewBox="0 0 {drawn.width} {drawn.height}" '
        f'width="{drawn.width}" height="{drawn.height}">',
        f"<title>{text(title)}</title>{inside}",
        f'<path class="paper" d="M0 0h{drawn.width}v{drawn.height}H0z"/>',
    ]
    by_shade: dict[int, list[str]] = {}
    for cell in drawn.cells:
        by_shade.setdefault(shade(cell.value, drawn.limit), []).append(_dot(cell) if cell.value <= 0 else _box(cell))
    parts += [f'<path class="s{number}" d="{"".join(paths)}"/>' for number, paths in sorted(by_shade.items())]
    for label in drawn.labels:
        kind = f"n{max(shade(label.value, drawn.limit), 0)}" if label.kind == "number" else label.kind
        chosen = f' class="{kind}"' if kind else ""
        anchor = "" if label.anchor == "start" else f' text-anchor="{label.anchor}"'
        parts.append(f'<text x="{_short(label.x)}" y="{_short(label.y)}"{chosen}{anchor}>{text(label.text)}</text>')
    return "".join(parts) + "</svg>"


def style(colormap: str, dark: bool = False) -> str:
    """The CSS of every shade on a light page; with `dark` on a dark one too, where the colours are the default ones."""
    light = [shades.light(number / (SHADES - 1), colormap) for number in range(SHADES)]
    css = (
        ".heat{font:11px system-ui,sans-serif;max-width:100%;height:auto}.heat text{fill:#555}"
        ".heat .strong{font-weight:600;font-size:13px;fill:#111}.paper{fill:#fff}.s-1{fill:#777}" + _classes(light)
    )
    if not dark:
        return css
    night = ".heat text{fill:#aaa}.heat .strong{fill:#eee}.paper{fill:#16171a}.s-1{fill:#888}"
    if colormap == "diverging":
        night += _classes([shades.dark(number / (SHADES - 1)) for number in range(SHADES)])
    return f"{css}@media (prefers-color-scheme:dark){{{night}}}"


def shade(value: float, limit: float) -> int:
    """The shade of a utilisation, 0 to 24: 12 is an even share; -1: no token."""
    return -1 if value <= 0 else round(shades.position(value, limit) * (SHADES - 1))


def text(value: str) -> str:
    """The text escaped for XML, without what that forbids even when escaped."""
    return escape(_FORBIDDEN.sub("\ufffd", value))


def _classes(colours: Sequence[shades.Colour]) -> str:
    """`s` and a number fills with that shade, `n` and the number is text on it."""
    return "".join(
        f".s{number}{{fill:{shades.hexadecimal(colour)}}}"
        f".heat .n{number}{{fill:{'#fff' if shades.is_dark(colour) else '#000'}}}"
        for number, colour in enumerate(colours)
    )


def _box(cell: Cell) -> str:
    gap = 1 if cell.width >= 6 else 0
    wide, high = _short(cell.width - gap), _short(cell.height - (1 if cell.height >= 8 else 0))
    return f"M{_short(cell.x)} {_short(cell.y)}h{wide}v{high}h-{wide}z"


def _dot(cell: Cell) -> str:
    radius = _short(min(2.0, cell.width / 2.5))
    x, y = _short(cell.x + cell.width / 2 - float(radius)), _short(cell.y + cell.height / 2)
    return f"M{x} {y}a{radius} {radius} 0 1 0 {2 * float(radius):g} 0a{radius} {radius} 0 1 0-{2 * float(radius):g} 0z"


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
