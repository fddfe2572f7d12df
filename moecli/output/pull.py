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

_LONGEST_NAME = 28
_WORTH_TELLING = 3.0  # seconds of waiting


def screen(proposal: Proposal, on_stderr: bool, no_color: bool) -> None:
    """The facts before anything is fetched: the answer of a dry run, else talk."""
    manifest, plan, speed = proposal.manifest, proposal.estimate.plan, proposal.estimate.speed
    names = f"{len(manifest.weights)} of weights, {len(manifest.texts)} small ones, {format_bytes(manifest.bytes)}"
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
    to = Console(stderr=on_stderr, no_color=True if no_color else None, highlight=False, markup=False, emoji=False)
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


class Bars:
    """A bar for each file under way and one for all, on a terminal; elsewhere only what takes patience is told."""

    def __init__(self, total: int, quiet: bool = False) -> None:
        console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        shown = not quiet and sys.stderr.isatty() and console.is_interactive
        self._quiet = quiet
        self._shown = shown
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(20),
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
            for task in (self._task(file), self._total):
                done = next(each.completed for each in self._bars.tasks if each.id == task)
                self._bars.reset(task, completed=int(done) + size)
        self._retire(file)

    def advance(self, file: RemoteFile, size: int) -> None:
        with self._lock:
            self._bars.advance(self._task(file), size)
            self._bars.advance(self._total, size)
        self._retire(file)

    def wait(self, file: RemoteFile, why: str, seconds: float) -> None:
        self.tell(why, seconds)

    def tell(self, why: str, seconds: float) -> None:
        text = f"{why}: next attempt in {seconds:.0f} s"
        if self._shown:
            self._bars.console.print(text)
        elif not self._quiet and seconds >= _WORTH_TELLING:
            terminal.say(text)

    def _task(self, file: RemoteFile) -> TaskID:
        if file.name not in self._tasks:
            name = file.name if len(file.name) <= _LONGEST_NAME else f"…{file.name[1 - _LONGEST_NAME :]}"
            self._tasks[file.name] = self._bars.add_task(name, total=file.size)
        return self._tasks[file.name]

    def _retire(self, file: RemoteFile) -> None:
        """A whole file leaves its line to the next."""
        with self._lock:
            task = next((each for each in self._bars.tasks if each.id == self._tasks.get(file.name)), None)
            if task is not None and task.finished:
                self._bars.update(task.id, visible=False)
