"""What a pull will do, bars while it does it, and what it did; the same for deleting and checking."""

from __future__ import annotations

import sys
import threading
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from moecli.download.manifest import RemoteFile
from moecli.download.proposal import Proposal
from moecli.output import tables, terminal
from moecli.units import figure, format_bytes

_LONGEST_NAME = 26
_WORTH_TELLING = 3.0  # seconds of waiting


def screen(proposal: Proposal, on_stderr: bool, no_color: bool) -> None:
    """The facts before anything is fetched: the answer of a dry run, else talk."""
    manifest, plan, speed = proposal.manifest, proposal.estimate.plan, proposal.estimate.speed
    names = f"{len(manifest.weights)} with weights, {len(manifest.texts)} small ones, {format_bytes(manifest.bytes)}"
    free, after = format_bytes(proposal.free), format_bytes(max(0, proposal.free - proposal.missing))
    band = f"{figure(speed.low)} to {figure(speed.high)} tokens/s ({speed.evidence} bandwidths)"
    how = "fits into RAM" if plan.fits else "with experts read from disk" if plan.runs else "does not run in this RAM"
    gate = "; the Hub wants its terms accepted" if manifest.gated else ""
    rows = [
        ("files", names),
        ("here", f"{format_bytes(proposal.present)} in the Hugging Face cache" if proposal.present else "nothing yet"),
        ("to fetch", format_bytes(proposal.missing)),
        ("disk", f"{free} free now, {after} after"),
        (
            "licence",
            (manifest.licence or "not named") + gate,
        ),
        ("memory", f"{format_bytes(proposal.estimate.needs.peak)} in {proposal.estimate.needs.dtype}; {how}"),
        ("speed", band if plan.runs else "-"),
    ]
    colour = True if no_color else None
    to = Console(stderr=on_stderr, no_color=colour, highlight=False, markup=False, emoji=False)
    tables.show(to, tables.title(proposal.name, f"{manifest.repo} at {manifest.commit[:12]}"), tables.facts(rows))


def document(proposal: Proposal) -> dict[str, Any]:
    """`pull --dry-run --json`."""
    manifest, one = proposal.manifest, proposal.estimate
    return _head(proposal) | {
        "download_bytes": proposal.missing,
        "cached_bytes": proposal.present,
        "free_bytes": proposal.free,
        "licence": manifest.licence,
        "gated": manifest.gated,
        "runnable": not proposal.spec.unsupported,
        "dtype": one.needs.dtype,
        "peak_rss_bytes": one.needs.peak,
        "fits": one.plan.fits,
        "runs": one.plan.runs,
        "speed": {
            "low": one.speed.low, "high": one.speed.high, "unit": "tokens_per_s", "evidence": one.speed.evidence,
        },
        "doubts": proposal.doubts,
    }  # fmt: skip


def done(proposal: Proposal) -> dict[str, Any]:
    """`pull --json`."""
    return _head(proposal) | {"downloaded_bytes": proposal.missing}


def _head(proposal: Proposal) -> dict[str, Any]:
    manifest = proposal.manifest
    return {
        "schema_version": 1,
        "name": proposal.name,
        "source": manifest.repo,
        "revision": manifest.commit,
        "path": str(manifest.snapshot),
        "bytes": manifest.bytes,
        "files": [{"name": file.name, "bytes": file.size, "hash": file.hash} for file in manifest.files],
    }


def tell(why: str, seconds: float | None) -> None:
    """That nothing moves for a while, if the while is long."""
    if seconds is None or seconds >= _WORTH_TELLING:
        terminal.say(why if seconds is None else f"{why}: next attempt in {seconds:.0f} s")


class Bars:
    """A bar for each file under way and one for all, on a terminal; elsewhere only what takes patience is told."""

    def __init__(self, total: int, quiet: bool = False) -> None:
        console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        shown = not quiet and sys.stderr.isatty() and console.is_interactive
        self._quiet = quiet
        self._shown = shown
        self._lock = threading.Lock()
        self._tasks: dict[RemoteFile, TaskID] = {}
        self._left: dict[RemoteFile, int] = {}
        self._done = 0
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(14),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not shown,
            transient=True,
        )
        self._total = self._bars.add_task("total", total=total)

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def found(self, file: RemoteFile, size: int) -> None:
        """Bytes that cost no time, or that turned out to be wrong: they say nothing about the rate."""
        with self._lock:
            done = file.size - self._left.setdefault(file, file.size) + size
            self._bars.reset(self._task(file), completed=done)
            self._done += size
            self._bars.reset(self._total, completed=self._done)
            self._count(file, size)

    def advance(self, file: RemoteFile, size: int) -> None:
        with self._lock:
            self._bars.advance(self._task(file), size)
            self._done += size
            self._bars.advance(self._total, size)
            self._count(file, size)

    def wait(self, file: RemoteFile, why: str, seconds: float | None) -> None:
        if not self._quiet:
            tell(why, seconds)

    def _task(self, file: RemoteFile) -> TaskID:
        if file not in self._tasks:
            name = file.name if len(file.name) <= _LONGEST_NAME else f"…{file.name[1 - _LONGEST_NAME :]}"
            done = file.size - self._left.setdefault(file, file.size)
            self._tasks[file] = self._bars.add_task(name, total=file.size, completed=done)
        return self._tasks[file]

    def _count(self, file: RemoteFile, size: int) -> None:
        """A whole file leaves its line to the next."""
        self._left[file] -= size
        if not self._left[file]:
            self._bars.remove_task(self._tasks.pop(file))
