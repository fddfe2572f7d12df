"""Utilisation as a glyph and a colour: the glyph carries the value, colour only repeats it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from rich.color import Color
from rich.console import Console
from rich.style import Style

Colour = tuple[int, int, int]

CLIP = 2.0  # log2: everything from 4 times an even share, or down to a quarter of it, looks alike
OKABE_ITO: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
OKABE_ITO_16 = "yellow", "bright_cyan", "green", "bright_yellow", "blue", "red", "magenta"
GREY: Colour = (140, 140, 140)

_GLOW: tuple[Colour, ...] = ((86, 148, 255), (138, 176, 232), (172, 172, 172), (244, 168, 78), (255, 112, 56))
_GROUND: tuple[Colour, ...] = ((14, 34, 84), (30, 42, 64), (40, 40, 42), (74, 46, 16), (96, 28, 8))
_LIGHT: tuple[Colour, ...] = ((23, 78, 160), (118, 165, 214), (240, 238, 232), (240, 166, 92), (176, 56, 12))
_DARK: tuple[Colour, ...] = ((72, 128, 206), (52, 84, 132), (52, 52, 56), (176, 100, 36), (255, 158, 72))
_STANDARD = "bold blue", "blue", "cyan", "", "yellow", "red", "bold red"


@dataclass(frozen=True, slots=True)
class Glyphs:
    """What a stream can carry. `ramp` is centred: its middle is an even share."""

    ramp: str
    dead: str
    space: str
    line_end: str
    tab: str
    cut: str


BLOCKS = Glyphs("▁▂▃▄▅▆█", "·", "·", "↵", "→", "…")
PLAIN = Glyphs(":-=+*#@", ".", "_", "\\n", "\\t", "~")


def glyphs(to: Console) -> Glyphs:
    """The glyphs that this stream can carry: block characters, unless its encoding has none."""
    try:
        "".join((BLOCKS.ramp, BLOCKS.dead, BLOCKS.line_end, BLOCKS.tab, BLOCKS.cut)).encode(to.encoding)
    except (UnicodeEncodeError, LookupError):
        return PLAIN
    return BLOCKS


def position(utilisation: float) -> float:
    """0 at a quarter of an even share and below, 0.5 at 1x, 1 at 4x and above."""
    if utilisation <= 0:
        return 0.0
    return (min(max(math.log2(utilisation), -CLIP), CLIP) + CLIP) / (2 * CLIP)


def glyph(to: Glyphs, place: float) -> str:
    """The step of the ramp for a place in 0..1."""
    return to.ramp[round(place * (len(to.ramp) - 1))]


def style(to: Console, utilisation: float) -> Style:
    """The diverging map: blue below 1x, grey at 1x, orange above, on a darker ground of the same hue."""
    if to.color_system is None:
        return Style.null()
    return _diverging(to.color_system == "standard", round(position(utilisation) * 60))


@lru_cache(maxsize=128)
def _diverging(standard: bool, step: int) -> Style:
    """The style of one of 61 steps, 30 being an even share."""
    if standard:
        return Style.parse(_STANDARD[round(step / 60 * (len(_STANDARD) - 1))])
    front, ground = _between(_GLOW, step / 60), _between(_GROUND, step / 60)
    return Style(color=Color.from_rgb(*front), bgcolor=Color.from_rgb(*ground))


def category(to: Console, index: int | None) -> Style:
    """Dark text on one of the seven colours of Okabe and Ito; None: one of the rest."""
    if index is None:
        return Style(color="bright_black") if to.color_system == "standard" else Style(color=Color.from_rgb(*GREY))
    if to.color_system == "standard":
        return Style(color="black", bgcolor=OKABE_ITO_16[index])
    ink = (255, 255, 255) if index == 4 else (0, 0, 0)
    return Style(color=Color.from_rgb(*ink), bgcolor=Color.from_rgb(*OKABE_ITO[index]))


def light(place: float) -> Colour:
    """The diverging map on a light page, at a place in 0..1."""
    return _between(_LIGHT, place)


def dark(place: float) -> Colour:
    """The diverging map on a dark page, at a place in 0..1."""
    return _between(_DARK, place)


def hexadecimal(colour: Colour) -> str:
    """A colour as CSS writes it: #0072b2."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _between(stops: tuple[Colour, ...], place: float) -> Colour:
    whole = min(int(place * (len(stops) - 1)), len(stops) - 2)
    part = place * (len(stops) - 1) - whole
    red, green, blue = (
        round(low + (high - low) * part) for low, high in zip(stops[whole], stops[whole + 1], strict=True)
    )
    return red, green, blue
