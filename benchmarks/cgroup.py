"""Run a command in a fresh process, if asked inside a memory cgroup (v2 or v1) that the kernel enforces. Needs root."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


@contextmanager
def limited(limit: int) -> Iterator[Path]:
    """A group that may hold `limit` bytes, page cache included, and no swap. OSError where none can be made."""
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


def run(command: Sequence[str], group: Path | None = None, text: str = "", accepted: Container[int] = (0,)) -> str:
    """What a process, born inside the group, writes to stdout. CalledProcessError for any other exit code."""
    result = subprocess.run(
        command,
        input=text,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        preexec_fn=partial(_enter, group) if group else None,
    )
    if result.returncode not in accepted:
        raise subprocess.CalledProcessError(result.returncode, command)
    return result.stdout


def _enter(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def forget(files: Iterable[Path]) -> None:
    """Drop files from the page cache: whoever reads them next reads the disk, and the pages count as its own."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
