"""How a check of hashes is shown: a line while it runs, then what differs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from moecli.library.verification import Checked, Subject
from moecli.output import tables, terminal
from moecli.units import format_bytes


@contextmanager
def bar(subject: Subject, quiet: bool) -> Iterator[Callable[[str, int], None]]:
    """A line on a terminal that says how far the reading is; yields what is told a file's name and the bytes read."""
    total, done = max(1, subject.bytes), 0
    with terminal.Line(quiet) as line:

        def advance(name: str, size: int) -> None:
            nonlocal done
            done += size
            line.show(f"{tables.percent(done / total):>6} of {format_bytes(total)}  {name}"[:78])

        yield advance


def report(subject: Subject, results: Sequence[Checked], removed: bool, quiet: bool) -> None:
    """Print one line for each problem on stdout, and the verdict."""
    problems = [result for result in results if result.problem]
    for result in problems:
        terminal.write(f"{result.name or subject.name}: {result.problem}\n")
    if problems and not quiet:
        other = next((result.hint for result in problems if result.hint), None)
        terminal.say(f"hint: {other or _repair(subject, removed)}")
    elif not quiet:
        size = format_bytes(sum(result.bytes for result in results))
        hashed = sum(result.hashed for result in results)
        more = f"; {len(results) - hashed} copies name no hash" if hashed < len(results) else ""
        how = "packed" if subject.packed else "published"
        line = f"{subject.name}: {hashed} files, {size}, all as {how}{more}"
        terminal.write(f"{terminal.fitted(line, sys.stdout)}\n")


def _repair(subject: Subject, removed: bool) -> str:
    if subject.packed:
        return f"moecli rm {subject.name}, then pack or pull it again"
    first = "" if removed else f"moecli verify {subject.name} --remove, then "
    return f"{first}moecli pull {subject.name}"
