"""Heatmaps as PNG: pixels into zlib, with a small alphabet of capitals."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources

from moecli.output.routing import shades
from moecli.output.routing.drawing import Cell, Drawing, Label

_SCALE = 2  # pixels of a point
_ADVANCE = 6  # points from letter to letter
_INK = (70, 70, 74)
_STRONG = (16, 16, 20)
_PAPER = (255, 255, 255)


class _Canvas:
    """A picture as rows of RGB bytes, white at first."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.rows = [bytearray(bytes(_PAPER) * width) for _ in range(height)]

    def fill(self, x: int, y: int, width: int, height: int, colour: shades.Colour) -> None:
        x, right = max(x, 0), max(min(x + width, self.width), 0)
        for row in self.rows[max(y, 0) : max(y + height, 0)]:
            row[3 * x : 3 * right] = bytes(colour) * max(right - x, 0)

    def encoded(self, texts: Mapping[str, str]) -> bytes:
        lines = b"".join(b"\0" + row for row in self.rows)
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        resolution = struct.pack(">IIB", 2835 * _SCALE, 2835 * _SCALE, 1)
        said = [(b"iTXt", f"{key}\0\0\0\0\0{value}".encode("utf-8", "replace")) for key, value in texts.items()]
        pixels = b"IDAT", zlib.compress(lines, 9)
        parts = (b"IHDR", header), (b"pHYs", resolution), *said, pixels, (b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def document(drawn: Drawing, provenance: Mapping[str, str] | None = None) -> bytes:
    """The bytes of the PNG file, on white; where it comes from as iTXt chunks."""
    widest = max(_end(label) for label in drawn.labels) + 8
    canvas = _Canvas(int(max(drawn.width, widest) * _SCALE), drawn.height * _SCALE)
    for cell in drawn.cells:
        _cell(canvas, cell)
    for label in drawn.labels:
        _write(canvas, label)
    return canvas.encoded(provenance or {})


def _cell(canvas: _Canvas, cell: Cell) -> None:
    x, y, width, height = (round(side * _SCALE) for side in (cell.x, cell.y, cell.width, cell.height))
    if cell.value <= 0:
        dot = min(3 * _SCALE // 2, width - 1)
        canvas.fill(x + (width - dot) // 2, y + (height - dot) // 2, dot, dot, _INK)
        return
    across, down = int(cell.width >= 6), int(cell.height >= 8)
    canvas.fill(x, y, width - across, height - down, shades.light(shades.position(cell.value)))


def _write(canvas: _Canvas, label: Label) -> None:
    colour = _STRONG if label.kind == "strong" else _INK
    if label.kind == "number":
        colour = _PAPER if abs(shades.position(label.value) - 0.5) > 0.36 else _STRONG
    x, y = round(_start(label) * _SCALE), round((label.y - 7) * _SCALE)
    for letter in label.text.upper():
        for row, bits in enumerate(_letters().get(letter, _letters()["?"])):
            for column, bit in enumerate(bits):
                if bit == "#":
                    canvas.fill(x + column * _SCALE, y + row * _SCALE, _SCALE, _SCALE, colour)
        x += _ADVANCE * _SCALE


def _start(label: Label) -> float:
    length = len(label.text) * _ADVANCE - 1
    return label.x - {"start": 0.0, "middle": length / 2, "end": length}[label.anchor]


def _end(label: Label) -> float:
    return _start(label) + len(label.text) * _ADVANCE


@lru_cache(maxsize=1)
def _letters() -> dict[str, tuple[str, ...]]:
    """Seven rows of five for each letter: a line of letters, then their rows side by side."""
    lines = (resources.files("moecli") / "output" / "page" / "letters.txt").read_text(encoding="ascii").splitlines()
    found: dict[str, tuple[str, ...]] = {" ": ("",) * 7}
    for start in range(0, len(lines), 8):
        for place, letter in enumerate(lines[start].split()):
            found[letter] = tuple(line[6 * place : 6 * place + 5] for line in lines[start + 1 : start + 8])
    return found


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
