"""Utilisation as a glyph and a colour: the glyph carries the value, colour only repeats it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from rich.color import Color
from rich.console import Console
from rich.style import Style

Colour = tuple[int, int, int]

LIMITS = 1.5, 2.0, 3.0, 4.0  # times an even share: where a scale may end; what is beyond the last looks alike
OKABE_ITO: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (153, 153, 153),
)  # fmt: skip  # grey for their black, which a dark page would swallow
OKABE_ITO_16 = "yellow", "bright_cyan", "green", "bright_yellow", "blue", "red", "magenta", "white"
GREY: Colour = (140, 140, 140)

_GLOW: tuple[Colour, ...] = ((86, 148, 255), (138, 176, 232), (172, 172, 172), (244, 168, 78), (255, 112, 56))
_GROUND: tuple[Colour, ...] = ((14, 34, 84), (30, 42, 64), (40, 40, 42), (74, 46, 16), (96, 28, 8))
_LIGHT = "174ea0 76a5d6 f0eee8 f0a65c b0380c"
_DARK: tuple[Colour, ...] = ((72, 128, 206), (52, 84, 132), (52, 52, 56), (176, 100, 36), (255, 158, 72))
COLORMAPS = {  # stops from least to most used; all but the first are perceptually uniform and darkest for the least
    "diverging": _LIGHT,
    "viridis": "440154 472d7b 3b528b 2c728e 21918c 28ae80 5ec962 addc30 fde725",
    "cividis": "00224e 1a386f 434e6c 61656f 7d7c78 9b9476 bcad6c ddc85c fee838",
    "magma": "000004 1d1147 51127c 832681 b73779 e75263 fc8961 fec488 fcfdbf",
}
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


def limit_of(utilisations: Iterable[float]) -> float:
    """Where a scale ends that shows all of these, 1 / limit to limit; at most the last of LIMITS."""
    furthest = max((abs(math.log(value)) for value in utilisations if value > 0), default=0.0)
    return next((limit for limit in LIMITS if furthest <= math.log(limit)), LIMITS[-1])


def position(utilisation: float, limit: float) -> float:
    """0 at 1 / limit of an even share and below, 0.5 at 1x, 1 at `limit` times and above."""
    if utilisation <= 0:
        return 0.0
    return (min(max(math.log(utilisation, limit), -1.0), 1.0) + 1) / 2


def glyph(to: Glyphs, place: float) -> str:
    """The step of the ramp for a place in 0..1."""
    return to.ramp[round(place * (len(to.ramp) - 1))]


def style(to: Console, place: float) -> Style:
    """The diverging map at a place in 0..1: blue, grey at 1x, orange, on a darker ground of the same hue."""
    if to.color_system is None:
        return Style.null()
    return _diverging(to.color_system == "standard", round(place * 60))


@lru_cache(maxsize=128)
def _diverging(standard: bool, step: int) -> Style:
    """The style of one of 61 steps, 30 being an even share."""
    if standard:
        return Style.parse(_STANDARD[round(step / 60 * (len(_STANDARD) - 1))])
    front, ground = _between(_GLOW, step / 60), _between(_GROUND, step / 60)
    return Style(color=Color.from_rgb(*front), bgcolor=Color.from_rgb(*ground))


def category(to: Console, index: int | None) -> Style:
    """Dark text on one of the eight colours of Okabe and Ito; None: one of the rest."""
    if index is None:
        return Style(color="bright_black") if to.color_system == "standard" else Style(color=Color.from_rgb(*GREY))
    if to.color_system == "standard":
        return Style(color="black", bgcolor=OKABE_ITO_16[index])
    ink = (255, 255, 255) if index == 4 else (0, 0, 0)
    return Style(color=Color.from_rgb(*ink), bgcolor=Color.from_rgb(*OKABE_ITO[index]))


def light(place: float, colormap: str = "diverging") -> Colour:
    """One of COLORMAPS on a light page, at a place in 0..1."""
    return _between(tuple(_colour(stop) for stop in COLORMAPS[colormap].split()), place)


def is_dark(colour: Colour) -> bool:
    """Whether text on this colour must be light."""
    red, green, blue = (float(part / 255) ** 2.2 for part in colour)
    return bool(0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.18)


def dark(place: float) -> Colour:
    """The diverging map on a dark page, at a place in 0..1."""
    return _between(_DARK, place)


def hexadecimal(colour: Colour) -> str:
    """A colour as CSS writes it: #0072b2."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _colour(hexadecimal: str) -> Colour:
    red, green, blue = bytes.fromhex(hexadecimal)
    return red, green, blue


def _between(stops: tuple[Colour, ...], place: float) -> Colour:
    whole = min(int(place * (len(stops) - 1)), len(stops) - 2)
    part = place * (len(stops) - 1) - whole
    red, green, blue = (
        round(low + (high - low) * part) for low, high in zip(stops[whole], stops[whole + 1], strict=True)
    )
    return red, green, blue
