"""Is a store still what was written, and is that what its checkpoint gives? Names the damaged expert or tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from moecli.checkpoint.binding import Weights
from moecli.errors import CheckpointError, ConfigError, reading, remedy
from moecli.store import manifest
from moecli.store.checksums import file_checksums
from moecli.store.convert import packed_strips
from moecli.store.jobs import jobs
from moecli.store.layout import choose_layout
from moecli.store.manifest import FileChecksums
from moecli.store.packed import PackedStore, read_layout, refuse_unfinished
from moecli.store.progress import Progress


@dataclass(frozen=True, slots=True)
class Problem:
    """What differs: a file, or a part of it in words; `hint` where it may be whole and could not be read."""

    file: str
    what: str
    hint: str | None = None

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def verify(folder: Path, progress: Progress) -> list[Problem]:
    """Read every file of a store again. CheckpointError if there is no manifest that can be believed."""
    refuse_unfinished(folder)
    found = manifest.read(folder)
    try:
        layout = read_layout(folder, found)
    except (CheckpointError, ConfigError) as error:
        unread = error.__cause__
        hint = remedy(folder / "config.json", unread) if isinstance(unread, OSError) else None
        return [Problem("config.json", error.message, hint)]
    problems: list[Problem] = []
    total, done = sum(checksums.bytes for checksums in found.files.values()), 0

    def seen(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    for name, expected in found.files.items():
        parts = layout.parts(name) if name in layout.sizes else []
        try:
            checksums = file_checksums(folder / name, [(offset, size) for _, offset, size in parts], seen)
        except OSError as error:
            what = f"cannot be read: {error.strerror or error}"
            problems.append(Problem(name, what, remedy(folder / name, error)))
        else:
            problems += (Problem(name, what) for what in _differences(expected, checksums, [part[0] for part in parts]))
    return problems


def compare(store: PackedStore, weights: Weights, progress: Progress) -> list[Problem]:
    """Pack a checkpoint again and hold it against the store. CheckpointError if it is that of another model."""
    layout = choose_layout(weights, store.dtype)
    if layout != store.layout:
        raise CheckpointError(f"{store.folder} was not packed from this checkpoint: shapes or precisions differ")
    todo = jobs(weights, layout)
    total, done = sum(job.read_size for job in todo), 0
    differing: dict[str, Problem] = {}
    for strip, data in packed_strips(todo, weights.checkpoint):
        with reading(store.folder), (store.folder / strip.job.file).open("rb") as file:
            file.seek(strip.offset)
            if file.read(len(data)) != data:
                differing[strip.job.name] = Problem(strip.job.file, f"{strip.job.name} is not what the source gives")
        done += strip.read_size
        progress(done, total)
    return list(differing.values())


def _differences(expected: FileChecksums, found: FileChecksums, names: list[str]) -> Iterator[str]:
    if found == expected:
        return
    damaged = [
        name for name, ours, theirs in zip_longest(names, expected.parts, found.parts, fillvalue="") if ours != theirs
    ]
    yield from (f"{name} is damaged" for name in damaged)
    if found.bytes != expected.bytes:
        yield f"has {found.bytes} bytes instead of {expected.bytes}"
    elif not damaged:
        yield "is damaged" if not names else "is damaged outside its tensors"
