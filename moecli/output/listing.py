"""Lists of models in tables."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console

from moecli.errors import printable
from moecli.library.listing import Here, Known
from moecli.output import tables, terminal
from moecli.output.comparison import billions
from moecli.output.memory import fits_here
from moecli.units import format_bytes


def show_here(to: Console, models: Sequence[Here]) -> None:
    """Print a table of the models on this machine: format, size, last use, revision."""
    meant = [model for model in models if model.stands_for and model.stands_for != model.name]
    rows: list[tuple[str, ...]] = [
        (
            printable(model.name) + (" *" if model in meant else ""),
            model.format,
            format_bytes(model.bytes),
            _age(model.last_used),
            _revision(model),
        )
        for model in models
    ]
    header: tuple[str, ...] = ("name", "format", "size", "used", "revision")
    left: tuple[int, ...] = (0, 1, 3, 4)
    if to.is_terminal and tables.columns_that_fit(to, header, rows) < 4:  # a narrow screen
        header, *rows = [(*row[:3], row[4]) for row in (header, *rows)]
        left = (0, 1, 3)
    narrow = to.is_terminal and tables.columns_that_fit(to, header, rows) < len(header) - 1
    table = _under_names(rows) if narrow else tables.grid(header, rows, left=left)
    notes = [
        f"* what '{printable(model.stands_for or '')}' means to run, inspect and memory; --dtype "
        f"{_original(model, models)} takes the original"
        for model in meant
    ]
    tables.show(to, table, *(["\n".join(notes)] if notes else []))


def _under_names(rows: Sequence[Sequence[str]]) -> str:
    """Format, size and revision of each model under its name."""
    wide = [max(len(row[column]) for row in rows) for column in (1, 2)]
    return "\n".join(f"{row[0]}\n  {row[1]:<{wide[0]}}  {row[2]:>{wide[1]}}  {row[3]}" for row in rows)


def show_names(names: Sequence[str]) -> None:
    """Print names as a shell loop wants them."""
    terminal.write("".join(f"{printable(name)}\n" for name in names))


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


def _original(store: Here, models: Sequence[Here]) -> str:
    """The format of the checkpoint that a packed model stands for; that of most where it is not here."""
    return next((each.format for each in models if each.name == store.stands_for), "bf16")


def show_known(to: Console, models: Sequence[Known]) -> None:
    """The catalog, smallest model first: a line each, with repository and licence where they fit."""
    header: tuple[str, ...] = ("alias", "total", "active", "q4", "fits here", "engine", "repository", "licence")
    rows = [_known_row(model) for model in models]
    shown = tables.columns_that_fit(to, header, rows) + 1
    engine, fits = "engine", "fits here: in the format to take on this machine; "
    if shown < 6:  # a narrow screen
        engine, fits = "runs", ""
        header, rows, shown = ("alias", "q4", engine), [(row[0], row[3], row[5]) for row in rows], 3
    left = tuple(column for column in (0, 4, 5, 6, 7) if column < shown)
    note = f"{fits}{engine}: whether this version can run it"
    tables.show(to, tables.grid(header[:shown], [row[:shown] for row in rows], left=left), note)


def _known_row(model: Known) -> tuple[str, ...]:
    entry = model.entry
    licence = (entry.licence or "no licence named") if entry else "as moecli"
    repository = (entry.repo or "no weights published") if entry else "built in"
    fits = fits_here(model.best, not model.lacks)
    engine = "no" if model.lacks else "yes"
    size = format_bytes(model.q4_bytes)
    return model.alias, billions(model.total), billions(model.active), size, fits, engine, repository, licence
