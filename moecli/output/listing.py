"""Lists of models in tables."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rich.console import Console

from moecli.errors import printable
from moecli.library.listing import Here, Known
from moecli.output import tables
from moecli.output.comparison import billions
from moecli.units import format_bytes


def show_here(to: Console, models: Sequence[Here]) -> None:
    """Print a table of the models on this machine: format, size, last use, revision."""
    rows = [
        (printable(model.name), model.format, format_bytes(model.bytes), _age(model.last_used), _revision(model))
        for model in models
    ]
    tables.show(to, tables.grid(("name", "format", "size", "used", "revision"), rows, left=(0, 1, 3, 4)))


def _revision(model: Here) -> str:
    """The revision in use, how many there are, and what is unfinished."""
    several = f" (of {len(model.revisions)})" if len(model.revisions) > 1 else ""
    partial = f", {format_bytes(model.partial_bytes)} of a download" if model.partial_bytes else ""
    state = " (damaged)" if model.damaged else "" if model.complete else " (not complete)"
    return (model.revision or model.source)[:12] + several + state + partial


def _age(when: float | None) -> str:
    if when is None:
        return "-"
    days = int((time.time() - when) // 86400)
    return "today" if days < 1 else "yesterday" if days == 1 else f"{days} days ago"


def show_known(to: Console, models: Sequence[Known]) -> None:
    """The catalog: one line a model where it fits, else repository and licence below."""
    header = ("alias", "total", "active", "runs", "licence", "repository")
    rows = [_known_row(model) for model in models]
    if tables.columns_that_fit(to, header, rows) == len(header) - 1:
        tables.show(to, tables.grid(header, rows, left=(0, 3, 4, 5)))
    else:
        tables.show(to, "\n".join(_two_lines(header, rows)))


def _two_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for alias, total, active, runs, licence, repository in (header, *rows):
        yield f"{alias:<{widths[0]}}  {total:>{widths[1]}}  {active:>{widths[2]}}  {runs}"
        yield f"  {repository}, {licence}"


def _known_row(model: Known) -> tuple[str, ...]:
    entry = model.entry
    licence = (entry.licence or "no licence named") if entry else "as moecli"
    repository = (entry.repo or "no weights published") if entry else "built in"
    runs = "no" if model.lacks else "yes"
    return model.alias, billions(model.total), billions(model.active), runs, licence, repository
