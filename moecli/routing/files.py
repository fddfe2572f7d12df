"""Traces by the name of their file: .csv and .jsonl as other tools know them, else the program's own format."""

from __future__ import annotations

from pathlib import Path

from moecli.errors import MoecliError
from moecli.routing import exchange, trace_file
from moecli.routing.trace import RoutingTrace
from moecli.store import filesystem
from moecli.text import incoming

_LINES = {".csv": exchange.to_csv, ".jsonl": exchange.to_jsonl}


def read(path: Path, shape: tuple[int, int] | None = None) -> RoutingTrace:
    """Read a trace. `shape`: active experts and experts of the model, which CSV does not say; else they are guessed."""
    if path.suffix not in _LINES:
        return trace_file.load(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MoecliError(f"cannot read the trace {path}: {error.strerror}") from error
    lines = incoming.lines(incoming.decode(content, str(path), lambda _: None))
    try:
        if path.suffix == ".jsonl":
            return exchange.from_jsonl(lines)
        return exchange.from_csv(lines, *(shape or (None, None)))
    except MoecliError as error:
        raise MoecliError(f"{path}: {error.message}", error.hint) from error


def of_stack(path: Path, stack: str) -> Path:
    """The file of one stack of a model that has two: out.trace -> out.encoder.trace."""
    return path.with_suffix(f".{stack}{path.suffix}") if stack else path


def write(trace: RoutingTrace, path: Path, stack: str = "") -> Path:
    """Write a trace in the form that the file's name asks for, over an existing one. DiskError if it cannot be.

    Returns the path, that `of_stack`.
    """
    path = of_stack(path, stack)
    if path.suffix not in _LINES:
        trace_file.save(trace, path)
    else:
        filesystem.write(path, (f"{line}\n".encode() for line in _LINES[path.suffix](trace)))
    return path
