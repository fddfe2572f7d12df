"""What the program does while it works, a line for each record on stderr, where MOECLI_LOG asks for it."""

from __future__ import annotations

import logging
import sys


def start(level: str | None) -> None:
    """Show the package's records from this level on; without one, nothing."""
    if level is None:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    logger = logging.getLogger("moecli")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level.upper())


class _Formatter(logging.Formatter):
    """Seconds since the start, level, module and message; whatever a name or an address holds, it is one line."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = record.relativeCreated / 1000
        line = f"{seconds:.3f} {record.levelname.lower()} {record.name}: {record.getMessage()}"
        return line if line.isprintable() else ascii(line)[1:-1]
