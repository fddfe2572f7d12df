"""What the tables say of the machine they were made on."""

from __future__ import annotations

import platform
from pathlib import Path

from moecli.planning import machine


def machine_name() -> str:
    """The processor and the cores that compute."""
    return f"{_processor()}, {machine.compute_threads()} cores"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
