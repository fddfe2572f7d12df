"""What a pull will do, bars while it does it, and what it did; the same for deleting and checking."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence

from rich.progress import TaskID

from moecli.hub.manifest import RemoteFile
from moecli.library.advice import Advice
from moecli.library.pull import Proposal
from moecli.library.pull_packed import PackedPull
from moecli.output import tables, terminal
from moecli.output.bars import byte_bars
from moecli.output.memory import place, speed
from moecli.planning.estimate import Estimate
from moecli.units import figure, format_bytes

_LONGEST_NAME = 26


def screen(pull: Proposal | PackedPull, on_stderr: bool, no_color: bool, doubts: bool = False) -> None:
    """The facts before anything is fetched: the answer of a dry run, else talk. `doubts`: those among them."""
    proposal = pull if isinstance(pull, Proposal) else pull.proposal
    manifest = proposal.manifest
    small = len(manifest.texts)
    names = (
        f"{len(manifest.weights)} with weights, {small} small one{'s' * (small != 1)}, {format_bytes(manifest.bytes)}"
    )
    after = proposal.free - proposal.missing
    disk = f"{format_bytes(after)} after" if after > 0 else f"{format_bytes(-after)} too few"
    here = "in the Hugging Face cache"
    if isinstance(pull, PackedPull):
        short = "" if proposal.has_room else f", {format_bytes(proposal.room - proposal.free)} too few"
        disk = f"{format_bytes(proposal.room)} needed at most meanwhile{short}"
        here = "cached or packed"
    gate = "; the Hub wants its terms accepted" if manifest.gated else ""
    rows = [
        ("files", names),
        ("here", f"{format_bytes(proposal.present)} {here}" if proposal.present else "nothing yet"),
        ("to fetch", format_bytes(proposal.missing)),
        *([("store", _store(pull))] if isinstance(pull, PackedPull) else []),
        ("disk", f"{format_bytes(proposal.free)} free now, {disk}"),
        ("licence", (manifest.licence or "not named") + gate),
        *_tokenizer(proposal),
        *_running(proposal.estimate, proposal.runs, proposal.lacks),
        *([("doubt", doubt) for doubt in proposal.doubts] if doubts else []),
    ]
    to = tables.console(no_color, terminal.styled(sys.stderr if on_stderr else sys.stdout))
    tables.show(to, tables.title(proposal.name, f"{manifest.repo} at {manifest.commit[:12]}"), tables.Facts(rows))


def estimate(guess: Advice, why: str, no_color: bool) -> None:
    """The same of a dry run for which the Hub could not be asked; `guess` is by the catalog, and has one way."""
    (way,) = guess.ways
    short = "" if way.has_room else f", {format_bytes(way.room - way.free)} too few"
    store = [("store", f"about {format_bytes(way.keep)} in {way.dtype}")] if way.packed else []
    entry = guess.ref.entry
    rows = [
        ("estimate", f"from the catalog; the Hub was not asked: {why}"),
        ("to fetch", f"about {format_bytes(way.fetch)}"),
        *store,
        ("disk", f"{format_bytes(way.free)} free now, about {format_bytes(way.room)} needed at most{short}"),
        ("licence", (entry.licence if entry else None) or "not named"),
        *_running(way.estimate, way.runs, guess.lacks),
        *([("next", guess.command)] if guess.command and not way.runs else []),
    ]
    tables.show(tables.console(no_color), tables.title(guess.ref.name, guess.ref.repo or ""), tables.Facts(rows))


def question(pull: Proposal | PackedPull) -> str:
    """One question with all that decides its answer: what comes, what stays, where it runs, how fast."""
    proposal = pull if isinstance(pull, Proposal) else pull.proposal
    one = proposal.estimate
    size, dtype = proposal.manifest.bytes, one.memory.dtype
    keep = (
        f"keep {format_bytes(sum(pull.layout.sizes.values()))} ({dtype})" if isinstance(pull, PackedPull) else "keep it"
    )
    runs = f"run it {place(one.plan)}, about {figure(one.speed.middle)} tokens/s"
    fetch = (
        f"Download {format_bytes(proposal.missing)}" if proposal.missing else f"Use {format_bytes(size)} fetched before"
    )
    return f"{fetch}, {keep}, {runs}?"


def _tokenizer(proposal: Proposal) -> list[tuple[str, str]]:
    """Where it comes from, if not from the repository itself."""
    entry = proposal.manifest.supplied_by
    if proposal.given:
        return [("tokenizer", "the one that --tokenizer names")]
    if proposal.own_tokenizer is None:
        return [("tokenizer", "none that can be read")]
    return [("tokenizer", f"from {entry.tokenizer}")] if entry and entry.tokenizer == proposal.own_tokenizer else []


def _running(one: Estimate, runs: bool, lacks: Sequence[str]) -> list[tuple[str, str]]:
    """Where a model will run and how fast; or that it will not."""
    if lacks:
        return [("engine", f"cannot run it: lacks {', '.join(lacks)}")]
    where = place(one.plan) if runs else "does not run in this RAM unless it is packed"
    if not runs and not one.plan.runs:
        where = "does not run in this RAM"
    memory = f"{format_bytes(one.memory.peak)} in {one.memory.dtype}; {where}"
    return [("memory", memory), ("speed", speed(one.speed) if runs else "-")]


def _store(pull: PackedPull) -> str:
    size = format_bytes(sum(pull.layout.sizes.values()))
    done = ", here already" if pull.store else ""
    return f"{size} in {pull.layout.dtype}, {pull.target.name}{done}"


def unasked(pull: Proposal | PackedPull) -> None:
    """Say that the Hub was not asked, where that is so."""
    proposal = pull if isinstance(pull, Proposal) else pull.proposal
    if proposal.unasked:
        terminal.say(f"note: {proposal.unasked}; {proposal.manifest.commit[:12]} is in the cache")


def tell(why: str, seconds: float | None) -> None:
    """Say that nothing moves for a while, even to those who want quiet; None: nobody knows how long."""
    terminal.say(why if seconds is None else f"{why}: next attempt in {seconds:.0f} s")


class Bars:
    """A bar for each file under way and one for all, on a terminal; elsewhere only what takes patience is told."""

    def __init__(self, total: int, quiet: bool = False) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[RemoteFile, TaskID] = {}
        self._left: dict[RemoteFile, int] = {}
        self._done = 0
        self._bars = byte_bars(14, quiet)
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
        """Bytes of a file that have just come over the network."""
        with self._lock:
            self._bars.advance(self._task(file), size)
            self._done += size
            self._bars.advance(self._total, size)
            self._count(file, size)

    def wait(self, file: RemoteFile, why: str, seconds: float | None) -> None:
        """Nothing comes for a while; None: nobody knows how long."""
        tell(why, seconds)

    def _task(self, file: RemoteFile) -> TaskID:
        if file not in self._tasks:
            name = file.name if len(file.name) <= _LONGEST_NAME else f"…{file.name[1 - _LONGEST_NAME :]}"
            done = file.size - self._left.setdefault(file, file.size)
            self._tasks[file] = self._bars.add_task(name, total=file.size, completed=done)
        return self._tasks[file]

    def _count(self, file: RemoteFile, size: int) -> None:
        """Count what has come of a file; a whole file leaves its line to the next."""
        self._left[file] -= size
        if not self._left[file]:
            self._bars.remove_task(self._tasks.pop(file))


class PackingBars(Bars):
    """Bars for a download that is packed as it arrives: one for each file, for all, and for what is packed."""

    def __init__(self, pull: PackedPull, quiet: bool = False) -> None:
        super().__init__(sum(file.size for file in pull.files), quiet)
        self.source_bytes = sum(tensor.size for tensor in pull.weights.checkpoint.tensors.values())
        self.resumed_bytes: int | None = None
        self._began = time.perf_counter()
        self._bars.update(self._total, description="fetched")
        self._packing = self._bars.add_task("packed", total=self.source_bytes)

    def __enter__(self) -> PackingBars:
        super().__enter__()
        return self

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def packed(self, done: int, total: int) -> None:
        """Bytes of the checkpoint packed so far; the first call says what an earlier attempt had done."""
        if self.resumed_bytes is None:
            self.resumed_bytes = done
            self._bars.reset(self._packing, total=total, completed=done)
        else:
            self._bars.update(self._packing, completed=done)
