"""Heatmaps as PNG and PDF with real type, drawn by matplotlib, which is an optional extra."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping

from moecli import __version__
from moecli.errors import MoecliError, UsageError
from moecli.output.routing import shades
from moecli.output.routing.drawing import Cell, Drawing, Label
from moecli.output.routing.heat import View

_INCH = 72  # points
_LARGEST = 20_000  # pixels of a side
_INK, _STRONG = "#555555", "#111111"
_SIZES = {"strong": 11.0, "": 8.5, "number": 8.5}  # points


def require() -> None:
    """MoecliError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        hint = 'pip install "moecli[figures]", or write -o FILE.svg'
        raise MoecliError("PNG and PDF take matplotlib, which is not installed", hint) from error


def document(drawn: Drawing, title: str, format: str, view: View, provenance: Mapping[str, str]) -> bytes:
    """The bytes of the file, png or pdf, on white, `view.dpi` pixels an inch; where it comes from in its metadata.

    The same for the same drawing. Type is embedded as type. UsageError for more pixels than a picture should have.
    """
    require()
    import matplotlib
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    longest = max(drawn.width, drawn.height) / _INCH
    if format == "png" and longest * view.dpi > _LARGEST:
        raise UsageError(
            f"--dpi {view.dpi} makes a picture of {longest * view.dpi:,.0f} pixels",
            f"--dpi {int(_LARGEST / longest)} is the most",
        )
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # whatever style the user has set for figures of their own
        matplotlib.rcParams["pdf.fonttype"] = 42  # TrueType, which journals ask for
        warnings.filterwarnings("ignore", "Glyph .* missing")  # shown as a box
        figure = Figure(figsize=(drawn.width / _INCH, drawn.height / _INCH), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, drawn.width), ylim=(drawn.height, 0))
        axes.set_axis_off()
        filled = [cell for cell in drawn.cells if cell.value > 0]
        colours = [_colour(cell.value, drawn, view) for cell in filled]
        axes.add_collection(PolyCollection([_corners(cell) for cell in filled], facecolors=colours, linewidths=0))
        empty = [cell for cell in drawn.cells if cell.value <= 0]
        places = [(cell.x + cell.width / 2, cell.y + cell.height / 2) for cell in empty]
        axes.plot(*zip(*places, strict=True), linestyle="", marker=".", markersize=2, color=_INK)
        for label in drawn.labels:
            _write(axes, label, drawn, view)
        about: dict[str, str | None]
        if format == "pdf":
            said = "; ".join(f"{key}: {value}" for key, value in provenance.items())
            about = {"Title": title, "Subject": said, "Creator": f"moecli {__version__}", "CreationDate": None}
        else:
            about = {"Software": None, **provenance}
        out = io.BytesIO()
        figure.savefig(out, format=format, dpi=view.dpi, metadata=about)
    return out.getvalue()


def _colour(value: float, drawn: Drawing, view: View) -> str:
    return shades.hexadecimal(shades.light(shades.position(value, drawn.limit), view.colormap))


def _corners(cell: Cell) -> list[tuple[float, float]]:
    """With a gap to the next cell, where there is room for one."""
    right = cell.x + cell.width - (cell.width >= 6)
    bottom = cell.y + cell.height - (cell.height >= 8)
    return [(cell.x, cell.y), (right, cell.y), (right, bottom), (cell.x, bottom)]


def _write(axes: object, label: Label, drawn: Drawing, view: View) -> None:
    colour = _STRONG if label.kind == "strong" else _INK
    if label.kind == "number":
        under = shades.light(shades.position(label.value, drawn.limit), view.colormap)
        colour = "#ffffff" if shades.is_dark(under) else "#000000"
    axes.text(  # type: ignore[attr-defined]
        label.x, label.y, label.text, ha={"start": "left", "middle": "center", "end": "right"}[label.anchor],
        va="baseline", size=_SIZES[label.kind], weight="bold" if label.kind == "strong" else "normal", color=colour,
        parse_math=False,
    )  # fmt: skip
