"""Bars on a terminal's stderr for bytes that move: how many of how many, how fast, how long still."""

from __future__ import annotations

import sys
from typing import Any

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from moecli.output import tables, terminal
from moecli.units import format_bytes

_WHOLE, _NO_BAR = 80, 66  # columns that all of it takes, and all but the bar


def byte_bars(width: int, quiet: bool, **more: Any) -> Progress:
    """Bars of `width` columns that are gone after; nothing where stderr is no terminal. `more` goes to Progress.

    A narrow terminal gets no bar, a narrower one only the share that is done and the time that is left.
    """
    console = tables.console(file=terminal.styled(sys.stderr))
    amounts: list[ProgressColumn] = [DownloadColumn(binary_units=True), _Rate()]
    if console.width < _NO_BAR:
        amounts = [TaskProgressColumn()]
    elif console.width >= _WHOLE:
        amounts.insert(0, BarColumn(width))
    return Progress(
        TextColumn("{task.description}", markup=False),
        *amounts,
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not (sys.stderr.isatty() and console.is_interactive),
        transient=True,
        **more,
    )


class _Rate(ProgressColumn):
    """Bytes a second in the units of the sizes beside it."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{format_bytes(speed)}/s", "progress.data.speed")
