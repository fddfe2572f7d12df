"""An analysis as a file: CSV, Markdown, SVG, PNG or one page of HTML, or the screen as plain text."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from moecli.errors import UsageError
from moecli.output import tables, terminal
from moecli.output.routing import html, long_form, markdown, png, svg
from moecli.output.routing.drawing import drawing
from moecli.output.routing.heat import View, chosen, heats
from moecli.output.routing.screen import draw, size
from moecli.output.routing.sections import sections
from moecli.output.routing.words import name
from moecli.routing.analysis import Analysis

FORMATS = "table", "csv", "md", "svg", "png", "html"
_WIDTH = 120  # of a table in a file


def write_file(analysis: Analysis, format: str, path: Path | None, view: View | None = None) -> None:
    """Write one of FORMATS; without a path to stdout. UsageError for PNG on a terminal."""
    if path is None and format == "png" and sys.stdout.isatty():
        raise UsageError("a PNG is not for a terminal", "add -o FILE.png, or send the output into a file")
    terminal.write_file(render(analysis, format, view or View()), path)


def render(analysis: Analysis, format: str, view: View) -> bytes:
    """The bytes of a file in one of FORMATS; text is UTF-8. UsageError for another format or a layer not recorded."""
    if format == "table":
        out = io.StringIO()
        draw(tables.console(file=out, width=_WIDTH, color_system=None), analysis, view)
        return out.getvalue().encode()
    report = chosen(analysis.report, view.layers)
    shown = heats(report, view)
    if format == "csv":
        return long_form.document(analysis, report).encode()
    if format == "md":
        return markdown.document(analysis, shown, sections(analysis, report), size(report)).encode()
    if format == "html":
        found = sections(analysis, report)
        return html.document(analysis, report, shown, drawing(shown), found).encode()
    drawn = drawing(shown, f"{name(analysis.name)}: how evenly the experts are used", size(report))
    if format == "svg":
        return svg.document(drawn, f"Routing of {name(analysis.name)}", analysis.provenance).encode()
    if format == "png":
        return png.document(drawn, analysis.provenance)
    raise UsageError(f"'{format}' is not a format", f"name one of {', '.join(FORMATS)}")
