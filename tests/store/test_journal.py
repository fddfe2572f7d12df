"""The memory of unfinished packing by itself: what was noted is known again, what was cut off was never written."""

from __future__ import annotations

import errno
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from moecli.errors import CheckpointError, DiskError
from moecli.store import journal
from moecli.store.filesystem import FULL
from moecli.store.journal import Journal, explained, locked, make_folder, occupied, read_plan, sync_folder
from moecli.store.manifest import FileChecksums, Origin
from tests.support.power import Disk, record
from tests.support.processes import in_child

PLAN = {"dtype": "q4", "schema": 1, "origin": asdict(Origin("name", None, None, "/somewhere", "f" * 64))}
SUMS = FileChecksums(123, "a" * 64, ("b" * 32, "c" * 32))


def worked(folder: Path) -> Journal:
    found = Journal(folder, PLAN)
    found.add(done=["one", "two"])
    found.add(kept=["shard"])
    found.seal("file", SUMS)
    return found


def known(found: Journal) -> tuple[set[str], set[str], dict[str, FileChecksums]]:
    return found.done, found.kept, found.sealed


WHOLE = {"one", "two"}, {"shard"}, {"file": SUMS}


def test_what_was_noted_is_known_again(tmp_path: Path) -> None:
    assert known(Journal(tmp_path, PLAN)) == (set(), set(), {})
    assert known(worked(tmp_path)) == WHOLE == known(Journal(tmp_path, PLAN))
    Journal(tmp_path, PLAN).add(done=["three"], kept=["another"])
    assert known(Journal(tmp_path, PLAN)) == ({"one", "two", "three"}, {"shard", "another"}, {"file": SUMS})
    assert read_plan(tmp_path) == PLAN


def test_each_event_is_a_line(tmp_path: Path) -> None:
    worked(tmp_path)
    lines = (tmp_path / journal.FILE).read_bytes().splitlines(keepends=True)
    assert len(lines) == 4 and all(line.endswith(b"\n") for line in lines)
    assert json.loads(lines[0]) == PLAN
    assert json.loads(lines[1]) == {"done": ["one", "two"], "kept": []}


def test_a_line_that_was_cut_off_was_never_written(tmp_path: Path) -> None:
    worked(tmp_path)
    path = tmp_path / journal.FILE
    content = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        found, lines = Journal(tmp_path, PLAN), sum(end <= cut for end in ends)
        assert bool(found.done) == (lines > 1) and bool(found.kept) == (lines > 2) and bool(found.sealed) == (lines > 3)
        assert path.read_bytes() == content[: ends[max(lines, 1) - 1]]
        found.add(done=["three"])
        assert "three" in Journal(tmp_path, PLAN).done


BAD = {
    "no JSON": b"{\n", "a list": b"[]\n", "a number": b"7\n", "zeros": bytes(80) + b"\n", "no end": b'{"done": ["x"]}',
    "done a text": b'{"done": "one"}\n', "done a number": b'{"done": 1}\n', "numbers done": b'{"done": [1]}\n',
    "kept a table": b'{"kept": {"a": 1}}\n', "kept null": b'{"kept": [null]}\n', "sealed a list": b'{"sealed": []}\n',
    "sealed without sums": b'{"sealed": "x"}\n', "sums of words": b'{"sealed": "x", "sums": {"bytes": "1"}}\n',
    "sums null": b'{"sealed": "x", "sums": null}\n',
    "no parts": b'{"sealed": "x", "sums": {"bytes": 1, "sha256": ""}}\n',
    "bytes a truth": b'{"sealed": "x", "sums": {"bytes": true, "sha256": "", "parts": []}}\n',
    "deep": b'{"done": ' + b"[" * 9000 + b"]" * 9000 + b"}\n", "no text": b"\xff\xfe\n",
}  # fmt: skip


@pytest.mark.parametrize("line", BAD.values(), ids=BAD)
def test_what_no_journal_has_written_ends_it(line: bytes, tmp_path: Path) -> None:
    worked(tmp_path)
    path = tmp_path / journal.FILE
    good = path.read_bytes()
    path.write_bytes(good + line + b'{"done": ["after"], "kept": []}\n')
    assert known(Journal(tmp_path, PLAN)) == WHOLE
    assert path.read_bytes() == good


@pytest.mark.parametrize(
    "line", [b"", b"[]\n", b"{}\n", b'{"dtype": "q4"}\n', b'{"dtype": 4, "origin": 1}\n', bytes(99)]
)
def test_a_journal_without_a_plan_is_begun_anew(line: bytes, tmp_path: Path) -> None:
    (tmp_path / journal.FILE).write_bytes(line + b'{"done": ["x"], "kept": []}\n')
    assert read_plan(tmp_path) is None
    assert known(Journal(tmp_path, PLAN)) == (set(), set(), {})
    assert read_plan(tmp_path) == PLAN and known(worked(tmp_path)) == WHOLE


@pytest.mark.parametrize("other", [{"dtype": "q8"}, {"schema": 2}, {"more": 1}])
def test_another_plan_is_refused_and_changes_nothing(other: dict[str, object], tmp_path: Path) -> None:
    worked(tmp_path)
    before = (tmp_path / journal.FILE).read_bytes()
    with pytest.raises(CheckpointError, match="begun from another source") as refused:
        Journal(tmp_path, PLAN | other)
    assert refused.value.hint == f"moecli rm {tmp_path}"
    assert (tmp_path / journal.FILE).read_bytes() == before


def test_no_plan_where_nothing_can_be_read(tmp_path: Path) -> None:
    assert read_plan(tmp_path) is None and read_plan(tmp_path / "none") is None
    (tmp_path / journal.FILE).mkdir()
    assert read_plan(tmp_path) is None
    with pytest.raises(CheckpointError, match="cannot be read"):
        Journal(tmp_path, PLAN)


def test_a_plan_of_any_length_is_not_read(tmp_path: Path) -> None:
    path, most = tmp_path / journal.FILE, 2**20
    line = json.dumps(PLAN)[:-1] + ', "more": "'
    path.write_text(line + "x" * (most - len(line) - 3) + '"}\n')
    assert path.stat().st_size == most and read_plan(tmp_path) is not None
    path.write_text(line + "x" * (most - len(line) - 2) + '"}\n')
    assert read_plan(tmp_path) is None


def test_room_on_disk_is_counted_without_holes(tmp_path: Path) -> None:
    assert occupied(tmp_path / "none") == 0
    (tmp_path / "small").write_bytes(b"x" * 10)
    assert occupied(tmp_path / "small") == 10
    (tmp_path / "full").write_bytes(os.urandom(2**20))
    assert occupied(tmp_path / "full") == 2**20
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(2**30)
    assert occupied(tmp_path / "hole") <= 2**16


@pytest.mark.parametrize("number", FULL)
def test_a_full_disk_is_said(number: int, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=f"the disk of {tmp_path} is full") as said, explained(tmp_path):
        raise OSError(number, os.strerror(number))
    assert said.value.hint is not None and "goes on from there" in said.value.hint


def test_other_failures_are_said_and_a_reader_that_left_is_none(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskError, match=f"{tmp_path} cannot be written: {os.strerror(errno.EROFS)}"),
        explained(tmp_path),
    ):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    with pytest.raises(BrokenPipeError), explained(tmp_path):
        raise BrokenPipeError(errno.EPIPE, "gone")


def test_a_folder_is_one_process_s_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "down" / "work"

    def enter() -> None:
        with locked(folder):
            pass

    with locked(folder):
        assert "another moecli is packing" in str(in_child(enter))
        with pytest.raises(DiskError, match="another moecli") as refused:
            enter()
        assert refused.value.hint == "wait for it, or stop it"
    assert in_child(enter) == 0
    enter()


def test_a_lock_on_a_folder_that_lost_its_name_is_none(tmp_path: Path) -> None:
    """Between opening and locking the other one has finished."""
    folder = tmp_path / "work"
    with locked(folder):
        descriptors = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
        folder.rename(tmp_path / "store")
        with locked(folder):
            pass
    assert len(set(os.listdir("/proc/self/fd")) - descriptors) <= 1  # noqa: PTH208


def test_a_lock_counts_while_its_file_has_the_name(tmp_path: Path) -> None:
    """What `locked` asks once it holds the lock: the folder may have been renamed since the file was opened."""
    path = tmp_path / "lock"
    with path.open("wb") as file:
        assert journal._is_at(file.fileno(), path)
        path.rename(tmp_path / "elsewhere")
        assert not journal._is_at(file.fileno(), path)
        path.touch()
        assert not journal._is_at(file.fileno(), path)


def test_folders_are_made_with_those_above(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")
    sync_folder(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "none")


def test_a_folder_that_is_synced_is_not_held_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    sync_folder(tmp_path)
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


@pytest.mark.slow
def test_the_names_of_folders_that_are_made_are_safe(tmp_path: Path) -> None:
    root, before = tmp_path / "recorded", tmp_path / "before"
    root.mkdir()
    before.mkdir()
    make = "import sys, pathlib; from moecli.store.journal import make_folder; make_folder(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", make, str(root / "a" / "b" / "c")]
    result, calls = record(command, root, tmp_path, os.environ)
    assert result.returncode == 0, result.stderr
    disk = Disk(before, root)
    for call in calls:
        disk.apply(call)
    for folder in (root, root / "a", root / "a" / "b"):
        assert (folder / ("a", "b", "c")[len(folder.relative_to(root).parts)]).is_dir() and not disk.unsynced(folder)


def test_where_the_system_locks_nothing_work_goes_on(tmp_path: Path) -> None:
    """No file system without locks is at hand: a descriptor that only names a folder cannot be locked either."""
    descriptor = os.open(tmp_path, os.O_PATH)
    assert journal._try_lock(descriptor)
    os.close(descriptor)
