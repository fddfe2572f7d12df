"""A power cut at any moment of pack, pull and rm: nothing whole with wrong bytes, and the next command ends it well."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moecli import settings
from moecli.cli.app import app
from moecli.errors import ModelNotFound
from moecli.hub import cache as hub_cache
from moecli.library import stores
from moecli.store import journal, manifest
from moecli.store.packed import PARTIAL
from moecli.store.verify import verify
from tests.support import hub_server
from tests.support.power import FATES, Call, Disk, record, tree
from tests.support.stores import contents, deal, random_mixtral

pytestmark = pytest.mark.slow

REPO = "somebody/two-layers"
_PACKED = ("dense", "experts", "left-over")  # begin the names of files whose bytes the journal tells of
SAMPLE = 25  # cuts of each command; with --every-cut all, and with CUTS_PART=2/4 the second quarter of them


def moecli(*arguments: str) -> None:
    """The program, in this process."""
    app([*arguments, "--quiet"], standalone_mode=False)


@dataclass(frozen=True, slots=True)
class Recording:
    """What one command did to a folder, and how the folder was before."""

    before: Path
    root: Path
    calls: list[Call]


@dataclass(frozen=True, slots=True)
class Cut:
    """What is left in a folder when the power went after so many calls."""

    folder: Path
    fate: str
    calls: list[Call]
    is_last: bool

    def __str__(self) -> str:
        return f"{self.fate}, {len(self.calls)} calls, {self.calls[-1] if self.calls else 'none'}"


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers in three shards; every layer is in all of them."""
    shape = {"num_hidden_layers": 2, "num_local_experts": 2, "hidden_size": 64, "intermediate_size": 64}
    folder = random_mixtral(tmp_path_factory.mktemp("whole") / "two-layers", **shape)
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}')
    return deal(folder, tmp_path_factory.mktemp("dealt") / "two-layers", 3)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, source: Path) -> Iterator[hub_server.Hub]:
    with hub_server.serve_library(monkeypatch) as hub:
        for file in source.iterdir():
            hub.put(f"{REPO}/{file.name}", file.read_bytes())
        yield hub


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Let this process have its stores and its cache in a folder."""
    monkeypatch.setenv("MOECLI_THREADS", "1")

    def go(root: Path) -> None:
        monkeypatch.setenv("MOECLI_HOME", str(root / "home"))
        monkeypatch.setenv("HF_HOME", str(root / "hf"))

    return go


@pytest.fixture
def recorded(tmp_path: Path, at: Callable[[Path], None]) -> Callable[..., Recording]:
    """Run moecli in a process of its own, on a folder that `prepare` has filled."""

    def run(*arguments: str, prepare: Callable[[], None] = lambda: None, **more: str) -> Recording:
        root, before = tmp_path / "recorded", tmp_path / "before"
        root.mkdir()
        at(root)
        prepare()
        shutil.copytree(root, before, symlinks=True)
        program = [sys.executable, "-c", "from moecli.cli.app import main; main()"]
        result, calls = record([*program, *arguments], root, tmp_path, os.environ | more)
        assert result.returncode == 0, result.stderr
        disk = Disk(before, root)
        for call in calls:
            assert call.op != "rename" or disk.is_written(call.path), f"{call}: a name before its bytes are safe"
            disk.apply(call)
        disk.lay_out(tmp_path / "again", "all")
        assert tree(tmp_path / "again") == tree(root), "a change was not recorded"
        return Recording(before, root, calls)

    return run


@pytest.fixture
def cuts(tmp_path: Path, at: Callable[[Path], None], every_cut: bool) -> Callable[[Recording], Iterator[Cut]]:
    """Moments of a recording with a fate each; what is left is laid out, and this process works there."""

    def lay_out(recording: Recording) -> Iterator[Cut]:
        calls = recording.calls
        moments = [(number, fate) for number in range(len(calls) + 1) for fate in FATES]
        if not every_cut:  # writes are many and alike: after the others, and at the end
            telling = [each for each in moments if each[0] and calls[each[0] - 1].op != "write"][: -len(FATES)]
            chosen = random.Random(1).sample(telling, min(SAMPLE, len(telling)))
            moments = sorted(chosen) + moments[-len(FATES) :]
        part, parts = map(int, os.environ.get("CUTS_PART", "1/1").split("/"))
        moments = moments[len(moments) * (part - 1) // parts : len(moments) * part // parts]
        disk, done = Disk(recording.before, recording.root), 0
        for number, fate in moments:
            for call in calls[done:number]:
                disk.apply(call)
            done = number
            folder = tmp_path / "cut"
            disk.lay_out(folder, fate, (number, fate))
            at(folder)
            yield Cut(folder, fate, calls[:number], number == len(calls))
            shutil.rmtree(folder)

    return lay_out


def whole_stores() -> list[str]:
    """The packed models that are listed as complete; each holds what its manifest says."""
    whole = [store for store in stores.local_stores() if store.complete]
    for store in whole:
        assert verify(store.path, lambda done, total: None) == []
    return [store.name for store in whole]


def promised(calls: list[Call]) -> bytes:
    """The lines of the journal that must be there whatever is lost: a step was taken that relies on them."""
    written = safe = b""
    for call in calls:
        name = Path(call.path).name
        if name == journal.FILE and call.op == "unlink":
            return b""
        if name == journal.FILE and call.op == "write":
            written += call.data
        elif call.op == "unlink" or name.startswith((*_PACKED, manifest.FILE)):
            safe = written
    return safe


def check_order(recording: Recording, name: str) -> None:
    """At every call: what the journal says is synced before its line is written, the line before the next step."""
    disk = Disk(recording.before, recording.root)
    partial = recording.root / "home/models" / f"{name}{PARTIAL}"
    lines, made = list[dict[str, Any]](), set()
    for call in recording.calls:
        path = Path(call.path)
        if path == partial and call.op == "rename":
            assert disk.unsynced(partial) == set(), call
        elif path.parent == partial:
            loose = disk.unsynced(partial)
            assert call.op != "truncate" or path.name.startswith(_PACKED), f"{call}: what was whole is written again"
            if path.name == journal.FILE and call.op == "unlink":
                assert loose == set() and manifest.FILE in made, call
            elif path.name == journal.FILE and call.op == "write":
                assert not lines or not [each for each in loose if each.startswith(_PACKED)], call
                lines.append(json.loads(call.data))
            elif path.name.startswith(_PACKED) or (call.op == "unlink" and path.name != journal.LOCK):
                assert journal.FILE not in loose, call
        made.add(path.name)
        disk.apply(call)
    assert disk.unsynced(partial.parent) == set() and len(lines) > 3
    done = [name for line in lines for name in line.get("done", ())]
    assert len(done) == len(set(done)) > 10, "work was done twice"


def check_packing(cut: Cut, name: str, command: tuple[str, ...], reference: dict[str, bytes]) -> None:
    """What was promised is there, and the same command ends in the store that was never interrupted."""
    assert whole_stores() in (([name],) if cut.is_last else ([], [name])), cut
    if lines := promised(cut.calls):
        file = settings.stores() / f"{name}{PARTIAL}" / journal.FILE
        assert file.read_bytes().startswith(lines), cut
    moecli(*command)
    assert [folder.name for folder in settings.stores().iterdir()] == [name], cut
    assert contents(settings.stores() / name) == reference, cut


def published(server: hub_server.Hub) -> dict[str, bytes]:
    """What a pulled model holds."""
    return {path.removeprefix(f"{REPO}/"): file.part(0, file.size) for path, file in server.files.items()}


def after_a_kill() -> None:
    """What an earlier run had put aside and did not come to delete."""
    partial = settings.stores() / f"two-layers-q4{PARTIAL}"
    partial.mkdir(parents=True)
    (partial / "left-over-model-00009.growing").write_bytes(b"x")


def test_pack(recorded, source, cuts):
    recording = recorded("pack", str(source), prepare=after_a_kill)
    reference = contents(recording.root / "home/models/two-layers-q4")
    check_order(recording, "two-layers-q4")
    for cut in cuts(recording):
        check_packing(cut, "two-layers-q4", ("pack", str(source)), reference)


def test_pull_into_a_packed_model(recorded, source, server, cuts):
    name = "somebody--two-layers-q4"
    recording = recorded("pull", REPO, "--dtype", "q4", HF_ENDPOINT=server.url)
    reference = contents(recording.root / "home/models" / name)
    assert reference["config.json"] == (source / "config.json").read_bytes()
    check_order(recording, name)
    for cut in cuts(recording):
        check_packing(cut, name, ("pull", REPO, "--dtype", "q4"), reference)


def test_pull(recorded, server, cuts):
    recording = recorded("pull", REPO, HF_ENDPOINT=server.url)
    files = published(server)
    for cut in cuts(recording):
        whole = [model for model in hub_cache.local_models() if model.complete]
        for model in whole:
            found = contents(model.path)
            assert found == {name: files[name] for name in found}, cut
        assert whole or not cut.is_last, cut
        moecli("pull", REPO)
        assert contents(hub_cache.snapshot(REPO)) == files, cut
        assert hub_cache.commit(hub_cache.repository(REPO), "main") == hub_server.COMMIT, cut


def test_rm_of_a_packed_model(recorded, source, cuts):
    recording = recorded("rm", "two-layers-q4", "--yes", prepare=lambda: moecli("pack", str(source)))
    reference = contents(recording.before / "home/models/two-layers-q4")
    for number, cut in enumerate(cuts(recording)):
        if number % 2:
            moecli("pack", str(source))
            assert contents(settings.stores() / "two-layers-q4") == reference, cut
        else:
            with contextlib.suppress(ModelNotFound):
                moecli("rm", "two-layers-q4", "--yes")
            assert not list(settings.stores().iterdir()), cut


def test_rm_of_a_pulled_model(recorded, server, cuts):
    recording = recorded("rm", REPO, "--yes", prepare=lambda: moecli("pull", REPO), HF_ENDPOINT=server.url)
    files = published(server)
    for number, cut in enumerate(cuts(recording)):
        if number % 2:
            moecli("pull", REPO)
            assert contents(hub_cache.snapshot(REPO)) == files, cut
        else:
            with contextlib.suppress(ModelNotFound):
                moecli("rm", REPO, "--yes")
            assert not hub_cache.disk_files(hub_cache.repository(REPO)), cut
