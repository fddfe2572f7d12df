"""Run a command inside a memory cgroup (v2 or v1), so that the kernel enforces the budget. Needs root."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


@contextmanager
def limited(limit: int) -> Iterator[Path]:
    """A group that may hold `limit` bytes, page cache included, and no swap."""
    second = (_ROOT / "cgroup.controllers").is_file()
    group = (_ROOT if second else _ROOT / "memory") / f"moecli-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    try:
        (group / ("memory.max" if second else "memory.limit_in_bytes")).write_text(str(limit))
        for name in ("memory.swap.max", "memory.memsw.limit_in_bytes"):
            if (group / name).is_file():
                (group / name).write_text("0" if second else str(limit))
        yield group
    finally:
        group.rmdir()


def run(command: Sequence[str], group: Path, text: str = "") -> subprocess.CompletedProcess[str]:
    """A process that is born inside the group."""
    return subprocess.run(
        command,
        input=text,
        capture_output=True,
        encoding="utf-8",
        check=True,
        preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())),
    )


def peak(group: Path) -> int:
    """The most the group has held, page cache included."""
    for name in ("memory.peak", "memory.max_usage_in_bytes"):
        if (group / name).is_file():
            return int((group / name).read_text())
    return 0
