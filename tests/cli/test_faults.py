"""Real system calls that fail one after another under a model's files, and removals killed before each of theirs.

The gate takes a part of the places; FAULTS_STRIDE=1 takes all, and with FAULTS_PART=2/4 the second quarter of them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import moecli as package
from tests.support.faults import CHANGES, KILL, Injector, Job, compiler, injector
from tests.support.stores import contents

pytestmark = [pytest.mark.slow, pytest.mark.skipif(compiler() is None, reason="needs Linux and a C compiler")]

TINY = Path(package.__file__).parent / "tiny"
ERRORS = (errno.EIO, errno.EACCES, errno.EMFILE, errno.ENOMEM)
REPO, COMMIT, OTHER = "org/some-moe", "a" * 40, "b" * 40
FEW = {"config.json": b"{}", "model.safetensors": b"weights"}  # rm reads nothing
QUICK = ("-n", "2", "--raw", "--temperature", "0")


class Home:
    """A checkpoint, its store and a cached repository, and the program to run on them."""

    def __init__(self, root: Path, faults: Injector) -> None:
        self.root, self.faults = root, faults
        self.plain = shutil.copytree(TINY, root / "plain", dirs_exist_ok=True)
        self.stores = root / "moecli" / "models"
        self.store = self.stores / "tiny-q4"
        self.cache = root / "hf" / "hub"

    def run(self, *arguments: str, **fault: Any) -> Any:
        return self.faults.run(Job([*arguments], str(self.root), **fault))

    def fill_cache(self, *commits: str, files: Mapping[str, bytes] | None = None) -> None:
        """A repository with a snapshot for each commit; what they hold is the same but for one file each."""
        files = files or {file.name: file.read_bytes() for file in TINY.iterdir()}
        repo = self.cache / f"models--{REPO.replace('/', '--')}"
        (repo / "blobs").mkdir(parents=True)
        (repo / "refs").mkdir()
        for number, commit in enumerate(commits):
            snapshot = repo / "snapshots" / commit
            snapshot.mkdir(parents=True)
            for name, content in {**files, "README.md": commit.encode()}.items():
                blob = repo / "blobs" / hashlib.sha256(content).hexdigest()
                blob.write_bytes(content)
                (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
            (repo / "refs" / ("main", "old")[number]).write_text(commit)

    def left(self) -> list[Path]:
        return sorted(path for folder in (self.stores, self.cache) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Injector]]:
    root = tmp_path_factory.mktemp("faults")
    own = {"HOME": str(root), "HF_HOME": str(root / "hf"), "MOECLI_HOME": str(root / "moecli")}
    quiet = {"MOECLI_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
    with injector(os.environ | own | quiet) as running:
        yield root, running


@pytest.fixture
def whole_home(faults: tuple[Path, Injector]) -> Home:
    """With one of each, for commands that only read: kept until another test wants an empty one."""
    made = Home(*faults)
    if not made.store.is_dir():
        assert made.run("pack", "tiny").code == 0
        made.fill_cache(COMMIT)
    return made


@pytest.fixture
def home(faults: tuple[Path, Injector]) -> Iterator[Home]:
    def clear() -> None:
        for path in faults[0].iterdir():
            shutil.rmtree(path)

    clear()
    yield Home(*faults)
    clear()


@pytest.mark.parametrize(
    ("arguments", "places"),
    [
        (("run", "{plain}", "Hello", *QUICK), 10),
        (("run", "{store}", "Hello", *QUICK), 8),
        (("run", "tiny-q4", "Hello", *QUICK, "--ctx", "32", "--ram", "{least}", "-y"), 10),
        (("run", REPO, "Hello", *QUICK), 6),
        (("verify", "tiny-q4"), 8),
        (("verify", REPO), 6),
        (("list", "--json"), 6),
        (("inspect", "tiny-q4"), 5),
        (("inspect", "{plain}"), 4),
        (("inspect", REPO), 4),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_a_read_that_fails_explains_itself(arguments: tuple[str, ...], places: int, whole_home: Home) -> None:
    home = whole_home
    words = {"plain": str(home.plain), "store": str(home.store), "least": ""}
    if "{least}" in arguments:
        refused = home.run("run", "tiny-q4", "Hello", *QUICK, "--ctx", "32", "--ram", "1MiB")
        words["least"] = refused.talk.split("--ram ")[1].split(";")[0].split()[0]
    command = [word.format(**words) for word in arguments]
    whole = home.run(*command)
    assert whole.code == 0 and whole.calls > 10, whole.talk
    stride = int(os.environ.get("FAULTS_STRIDE", max(1, whole.calls // places)))
    part, parts = map(int, os.environ.get("FAULTS_PART", "1/1").split("/"))
    for turn, at in enumerate(range(1, whole.calls + 1, stride)[part - 1 :: parts]):
        for error in ERRORS if stride == 1 else ERRORS[turn % len(ERRORS) :][:1]:
            found = home.run(*command, at=at, error=error)
            where = f"{found.struck}: {errno.errorcode[error]}\n{found.talk}"
            assert "Traceback" not in found.talk and "Exception" not in found.talk, where
            assert found.code in (0, 1, 3) or (found.code == 2 and "HF_HOME is" in found.talk), where
            if found.code in (1, 2):
                assert found.talk.count("error: ") == 1 and "hint: " in found.talk, where
            if found.code == 3:
                assert command[0] == "verify" and "cannot be read" in found.output + found.talk, where
            if found.code == 0 and command[0] == "run":
                assert found.output == whole.output, where


def test_what_cannot_be_looked_at_is_not_called_missing(whole_home: Home) -> None:
    """At the end `verify` looks for what a snapshot lacks."""
    calls = whole_home.run("verify", REPO).calls
    looked = set()
    for at in range(calls - 16, calls + 1):
        found = whole_home.run("verify", REPO, at=at, error=errno.EIO)
        looked.add(found.struck.rpartition("/")[2])
        assert "missing" not in found.output + found.talk, found.struck
        assert found.code == 0 or "cannot be read: Input/output error" in found.output + found.talk, found.struck
    assert {"config.json", "model.safetensors"} <= looked


def test_what_could_not_be_read_for_another_reason_is_not_removed_as_damaged(home: Home) -> None:
    home.fill_cache(COMMIT, files=FEW)
    before, said = home.left(), set()
    for at in range(1, home.run("verify", REPO).calls + 1):
        found = home.run("verify", REPO, "--remove", at=at, error=(errno.EACCES, errno.EMFILE, errno.ENOMEM)[at % 3])
        assert home.left() == before, found.struck
        said.update(found.talk.splitlines() if found.code == 3 else ())
    assert said and not any("pull" in hint for hint in said)


def test_nobody_is_told_to_remove_a_store_that_could_not_be_read(whole_home: Home) -> None:
    calls, said = whole_home.run("verify", "tiny-q4").calls, set()
    for at in range(calls // 3, calls + 1, 8):
        found = whole_home.run("verify", "tiny-q4", at=at, error=errno.EMFILE)
        said.update(found.talk.splitlines() if found.code == 3 else ())
    assert said == {"hint: raise the limit of open files: ulimit -n 4096"}


def kill_everywhere(home: Home, command: tuple[str, ...], prepare: Callable[[], None]) -> Iterator[str]:
    """Where it was killed, each time on what was prepared anew; ends when the command has come to its end."""
    for at in count(1):
        for path in (home.stores, home.cache):
            shutil.rmtree(path, ignore_errors=True)
        prepare()
        found = home.run(*command, at=at, error=KILL, kinds=CHANGES)
        if found.code == 0:
            assert at > 5 and home.left() in ([], [home.cache / ".locks"])
            return
        assert found.code == -9, found.talk
        yield found.struck


@pytest.fixture
def packed(home: Home, tmp_path: Path) -> Path:
    assert home.run("pack", "tiny").code == 0
    return shutil.move(home.stores, tmp_path / "models")


@pytest.mark.parametrize("partial", [False, True], ids=["finished", "unfinished"])
def test_a_store_whose_removal_was_killed_is_removed_by_the_next(partial: bool, home: Home, packed: Path) -> None:
    name = "tiny-q4.partial" if partial else "tiny-q4"

    def prepare() -> None:
        folder = shutil.copytree(packed / "tiny-q4", home.stores / name, ignore=shutil.ignore_patterns("expert*", "t*"))
        if partial:
            (folder / "lock").touch()

    for struck in kill_everywhere(home, ("rm", name, "-y"), prepare):
        gone = not home.left()
        again = home.run("rm", name, "-y")
        assert again.code == (1 if gone else 0), f"{struck}\n{again.talk}"
        assert home.left() == [], struck


def test_a_store_whose_removal_was_killed_can_be_packed_again(home: Home, packed: Path) -> None:
    whole = contents(packed / "tiny-q4")
    for struck in kill_everywhere(home, ("rm", "tiny-q4", "-y"), lambda: shutil.copytree(packed, home.stores)):
        assert home.run("pack", "tiny").code == 0
        assert [path.name for path in home.stores.iterdir()] == ["tiny-q4"], struck
        assert contents(home.store) == whole, struck


@pytest.mark.parametrize("name", [REPO, f"{REPO}@main", f"{REPO}@{COMMIT}"])
def test_a_cached_model_whose_removal_was_killed_is_removed_by_the_next(name: str, home: Home) -> None:
    for struck in kill_everywhere(home, ("rm", name, "-y"), lambda: home.fill_cache(COMMIT, files=FEW)):
        again = home.run("rm", name, "-y")
        assert again.code == 0 or "is not on this machine" in again.talk, f"{struck}\n{again.talk}"
        assert [path for path in home.left() if ".locks" not in path.parts] == [], struck


@pytest.mark.parametrize("name", [f"{REPO}@old", f"{REPO}@{OTHER}"])
def test_a_revision_whose_removal_was_killed_is_removed_by_the_next(name: str, home: Home) -> None:
    home.fill_cache(COMMIT, files=FEW)
    expected = home.left()
    shutil.rmtree(home.cache)
    for at in count(1):
        home.fill_cache(COMMIT, OTHER, files=FEW)
        found = home.run("rm", name, "-y", at=at, error=KILL, kinds=CHANGES)
        again = home.run("rm", name, "-y") if found.code else found
        assert again.code == 0 or "is not on this machine" in again.talk, f"{found.struck}\n{again.talk}"
        assert home.left() == expected, found.struck
        shutil.rmtree(home.cache)
        if found.code == 0:
            return
