"""Bars on a terminal's stderr for bytes that move: how many of how many, how fast, how long still."""

from __future__ import annotations

import sys
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from moecli.output import tables, terminal


def byte_bars(width: int, quiet: bool, **more: Any) -> Progress:
    """Bars of `width` columns that are gone after; nothing where stderr is no terminal. `more` goes to Progress."""
    console = tables.console(file=terminal.styled(sys.stderr))
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(width),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not (sys.stderr.isatty() and console.is_interactive),
        transient=True,
        **more,
    )
