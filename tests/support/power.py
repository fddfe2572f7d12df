"""Power cuts: what a process does to a folder is recorded, call by call, and any moment of it is laid out anew.

A disk owes nobody what was not synced: the bytes of a file are safe once the file was synced, its name once its folder
was. What came after may be there or not, in any combination, names without their bytes among them.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_name("recorder.c")
_SECTOR = 512
FATES = (
    "synced",  # only what was synced
    "names",  # every name, but of the bytes only those that were synced
    "sizes",  # every name and size, zeros where bytes were not synced
    "chance",  # some of the names, some of the writes, some of them torn
    "all",  # as after a kill
)


@dataclass(frozen=True, slots=True)
class Call:
    """One call that changed files. `other` is where a name went, or the text of a link."""

    op: str
    path: str
    other: str
    offset: int
    data: bytes

    def __str__(self) -> str:
        return " ".join(map(str, (self.op, self.path, self.other, self.offset, len(self.data))))


def record(
    command: Sequence[str], root: Path, folder: Path, environment: Mapping[str, str]
) -> tuple[subprocess.CompletedProcess[str], list[Call]]:
    """Run a command to its end: what it said, and the calls that changed what lies in `root`. Skips where it cannot."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not Path("/proc/self/fd").is_dir():
        pytest.skip("no C compiler, or no Linux")
    library, log = folder / "recorder.so", folder / "calls"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl", "-lpthread"], check=True)
    recording = {"LD_PRELOAD": str(library), "RECORD_ROOT": str(root), "RECORD_LOG": str(log)}
    result = subprocess.run(
        command, env={**environment, **recording}, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8",
        timeout=120,
    )  # fmt: skip
    return result, list(_calls(log.read_bytes()))


def _calls(content: bytes) -> Iterator[Call]:
    end = 0
    while end < len(content):
        fields = []
        for _ in range(5):
            start, end = end, content.index(b"\0", end) + 1
            fields.append(os.fsdecode(content[start : end - 1]))
        op, path, other, offset, size = fields
        start, end = end, end + int(size)
        yield Call(op, path, other, int(offset), content[start:end])


Change = tuple[int, bytes] | int  # bytes written somewhere, or a new size


@dataclass(eq=False)
class _File:
    safe: bytes = b""
    since: list[Change] = field(default_factory=list)  # not synced

    def content(self, changes: Sequence[Change]) -> bytes:
        data = bytearray(self.safe)
        for change in changes:
            if isinstance(change, int):
                data = data[:change].ljust(change, b"\0")
            else:
                offset, part = change
                data = data.ljust(offset, b"\0")
                data[offset : offset + len(part)] = part
        return bytes(data)

    def after(self, fate: str, chance: random.Random) -> bytes:
        """The bytes that a cut leaves."""
        if fate == "chance":
            fate = chance.choice(("synced", "sizes", "all", "chance"))
        if fate in ("synced", "names"):
            return self.safe
        changes = self.since
        if fate == "sizes":
            changes = [each if isinstance(each, int) else (each[0], bytes(len(each[1]))) for each in changes]
        elif fate == "chance":
            changes = [_torn(each, chance) for each in changes if chance.random() < 0.6]
        return self.content(changes)


def _torn(change: Change, chance: random.Random) -> Change:
    if isinstance(change, int) or chance.random() < 0.7:
        return change
    offset, data = change
    return offset, data[: chance.randrange(len(data) // _SECTOR + 1) * _SECTOR]


@dataclass(eq=False)
class _Folder:
    safe: dict[str, _Node] = field(default_factory=dict)
    now: dict[str, _Node] = field(default_factory=dict)


@dataclass(eq=False)
class _Link:
    text: str


_Node = _File | _Folder | _Link
_Naming = tuple[tuple[_Folder, str, _Node | None], ...]  # what some names mean now; a rename changes two at once


class Disk:
    """A folder as the calls leave it, and what of that is safe."""

    def __init__(self, before: Path, path: Path) -> None:
        """What lies in `before` is safe; the calls say `path`."""
        self._path = path
        self._root = self._read(before)
        self._since: list[_Naming] = []  # not synced

    def _read(self, path: Path) -> _Folder:
        found: dict[str, _Node] = {}
        for each in path.iterdir():
            if each.is_symlink():
                found[each.name] = _Link(os.fspath(each.readlink()))
            else:
                found[each.name] = self._read(each) if each.is_dir() else _File(each.read_bytes())
        return _Folder(found, dict(found))

    def apply(self, call: Call) -> None:
        """Let a call happen."""
        match call.op:
            case "create":
                self._name((*self._place(call.path), _File()))
            case "mkdir":
                self._name((*self._place(call.path), _Folder()))
            case "symlink":
                self._name((*self._place(call.path), _Link(call.other)))
            case "link":
                self._name((*self._place(call.other), self._node(call.path)))
            case "unlink":
                self._name((*self._place(call.path), None))
            case "rename":
                node = self._node(call.path)
                self._name((*self._place(call.path), None), (*self._place(call.other), node))
            case "write" | "truncate":
                file = self._node(call.path)
                assert isinstance(file, _File)
                file.since.append((call.offset, call.data) if call.op == "write" else call.offset)
            case "sync":
                self._sync(self._node(call.path))

    def lay_out(self, folder: Path, fate: str, seed: object = 0) -> None:
        """What a cut at this moment leaves, into a new folder."""
        chance = random.Random(str(seed))
        kept = {"synced": 0.0, "chance": 0.5}.get(fate, 1.0)
        names: dict[_Folder, dict[str, _Node]] = {}
        for naming in self._since:
            if chance.random() < kept:
                for place, name, node in naming:
                    _set(names.setdefault(place, dict(place.safe)), name, node)
        self._write(self._root, folder, names, fate, chance)

    def is_written(self, path: str) -> bool:
        """Whether no cut could take bytes of a file."""
        node = self._node(path)
        return not (isinstance(node, _File) and node.since)

    def unsynced(self, folder: Path) -> set[str]:
        """The names in a folder that a cut could still take back, or the bytes behind them."""
        place = self._node(os.fspath(folder))
        assert isinstance(place, _Folder)
        names = place.now.keys() | place.safe.keys()
        loose = {name for name in names if place.now.get(name) is not place.safe.get(name)}
        return loose | {name for name, node in place.now.items() if isinstance(node, _File) and node.since}

    def _write(
        self, place: _Folder, path: Path, names: dict[_Folder, dict[str, _Node]], fate: str, chance: random.Random
    ) -> None:
        path.mkdir()
        for name, node in names.get(place, place.safe).items():
            if isinstance(node, _Folder):
                self._write(node, path / name, names, fate, chance)
            elif isinstance(node, _Link):
                (path / name).symlink_to(node.text)
            else:
                (path / name).write_bytes(node.after(fate, chance))

    def _place(self, path: str) -> tuple[_Folder, str]:
        *folders, name = Path(path).relative_to(self._path).parts
        place = self._root
        for each in folders:
            found = place.now[each]
            assert isinstance(found, _Folder)
            place = found
        return place, name

    def _node(self, path: str) -> _Node:
        if Path(path) == self._path:
            return self._root
        place, name = self._place(path)
        return place.now[name]

    def _name(self, *naming: tuple[_Folder, str, _Node | None]) -> None:
        for place, name, node in naming:
            _set(place.now, name, node)
        self._since.append(naming)

    def _sync(self, node: _Node) -> None:
        if isinstance(node, _File):
            node.safe, node.since = node.content(node.since), []
        elif isinstance(node, _Folder):
            synced = [naming for naming in self._since if any(place is node for place, _, _ in naming)]
            for place, name, meant in (each for naming in synced for each in naming):
                _set(place.safe, name, meant)
            self._since = [naming for naming in self._since if naming not in synced]


def _set(names: dict[str, _Node], name: str, node: _Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def tree(root: Path) -> dict[str, bytes | str | None]:
    """Everything below a folder: bytes of files, texts of links, None for folders."""
    found: dict[str, bytes | str | None] = {}
    for path in root.rglob("*"):
        name = os.fspath(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.fspath(path.readlink())
        else:
            found[name] = None if path.is_dir() else path.read_bytes()
    return found
