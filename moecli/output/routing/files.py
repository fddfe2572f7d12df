"""An analysis as a file: CSV, Markdown, SVG, PNG, PDF or one page of HTML, or the screen as plain text."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

from moecli.errors import UsageError
from moecli.output import tables, terminal
from moecli.output.routing import html, long_form, markdown, matrix, picture, svg
from moecli.output.routing.drawing import drawing
from moecli.output.routing.heat import View, chosen, heats
from moecli.output.routing.screen import draw, size
from moecli.output.routing.sections import sections
from moecli.output.routing.words import name
from moecli.routing.analysis import Analysis

FORMATS = "table", "csv", "matrix", "md", "svg", "png", "pdf", "html"
BINARY = "png", "pdf"
_WIDTH = 120  # of a table in a file


def write_file(analysis: Analysis, format: str, path: Path | None, view: View | None = None) -> list[Path]:
    """Write one of FORMATS, without a path to stdout; returns the files written. A picture on a terminal: UsageError.

    A matrix has no room for where it comes from: that goes into a file beside it, FILE.json.
    """
    if path is None and format in BINARY and sys.stdout.isatty():
        raise UsageError(f"a {format.upper()} is not for a terminal", f"add -o FILE.{format}, or pipe it into a file")
    terminal.write_file(render(analysis, format, view or View()), path)
    if path is None or format != "matrix":
        return [] if path is None else [path]
    beside = path.with_name(f"{path.name}.json")
    terminal.write_json({"provenance": dict(analysis.provenance), "value": matrix.VALUE}, beside)
    return [path, beside]


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
    if format == "matrix":
        return matrix.document(
            heats(report, replace(view, sort=False)), report.domains if view.by_domain else ()
        ).encode()
    if format == "md":
        return markdown.document(analysis, shown, sections(analysis, report), size(report)).encode()
    if format == "html":
        found = sections(analysis, report)
        return html.document(analysis, report, shown, drawing(shown), found, view).encode()
    title = f"{name(analysis.name)}: how evenly the experts are used" if view.title is None else view.title
    drawn = drawing(shown, title, size(report))
    about = title or f"Routing of {name(analysis.name)}"
    if format == "svg":
        return svg.document(drawn, about, view.colormap, analysis.provenance).encode()
    if format in BINARY:
        return picture.document(drawn, about, format, view, analysis.provenance)
    raise UsageError(f"'{format}' is not a format", f"name one of {', '.join(FORMATS)}")
