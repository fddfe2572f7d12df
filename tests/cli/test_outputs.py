"""Every output option on devices, pipes, links, folders, full disks and folders of others, as root and as nobody."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moecli.routing import files
from tests.support import forked, reports
from tests.support.forked import NOBODY, Ended

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="devices, pipes and owners are POSIX")]
as_root = pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can be somebody else")

_RUN = ("run", "tiny", "The sea", "-n", "2", "--quiet", "--trace")
_SHOW = ("inspect", "--routing", "--from", "{trace}", "--layers", "0")
# What each writes begins so. JSON, text and pictures have their own ways out of the program.
OPTIONS = {
    "--trace": (_RUN, b"moecli-trace 1 "),
    "--save-trace": ((*_SHOW, "--json", "--save-trace"), b"moecli-trace 1 "),
    "--json -o": ((*_SHOW, "--json", "-o"), b'{\n  "'),
    "csv -o": ((*_SHOW, "--format", "csv", "-o"), b"figure,"),
}
FORMATS = {"table": b"sample", "md": b"# ", "svg": b"<svg ", "html": b"<!doctype html>", "png": b"\x89PNG"}


@pytest.fixture(scope="module", autouse=True)
def _ready() -> None:
    forked.preload()


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that everybody can reach, with a trace in it."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    files.write(reports.trace(layers=1, tokens=40), made / "trace")
    yield made
    shutil.rmtree(made)


def run(folder: Path, option: str, place: Path | str, **more: object) -> Ended:
    arguments = [part.format(trace=folder / "trace") for part in OPTIONS[option][0]]
    return forked.moecli(*arguments, str(place), environment={"MOECLI_THREADS": "1"}, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_goes_the_same_way(folder: Path, form: str) -> None:
    if form == "png":
        pytest.importorskip("matplotlib")
    arguments = [part.format(trace=folder / "trace") for part in _SHOW]
    (folder / "link").symlink_to("target")
    assert forked.moecli(*arguments, "--format", form, "-o", folder / "link").code == 0
    assert (folder / "target").read_bytes().startswith(FORMATS[form])
    full = forked.moecli(*arguments, "--format", form, "-o", "/dev/full")
    assert full.code == 1 and "/dev/full cannot be written: No space left" in full.err
    assert names(folder) == ["link", "target"]


def is_whole(option: str, content: bytes) -> bool:
    return content.startswith(OPTIONS[option][1]) and len(content) > 200


def is_error(ended: Ended) -> bool:
    """Whether nothing is on stdout, or, of --json, the error as a document."""
    return not ended.out or json.loads(ended.out).keys() == {"schema_version", "error"}


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if each.name != "trace")


@pytest.mark.parametrize("option", OPTIONS)
def test_where_something_is(folder: Path, option: str) -> None:
    """A device, a full one, a pipe, a link to a file, an open descriptor, a folder: all stay what they are."""
    assert run(folder, option, "/dev/null").code == 0
    full = run(folder, option, "/dev/full")
    assert full.code == 1 and full.err.startswith("error: /dev/full cannot be written: No space left"), full.err
    assert all(stat.S_ISCHR(Path(device).stat().st_mode) for device in ("/dev/null", "/dev/full"))
    assert not list(Path("/dev").glob(".moecli*"))

    os.mkfifo(folder / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((folder / "pipe").read_bytes()))
    reader.start()
    assert run(folder, option, folder / "pipe").code == 0
    reader.join()
    assert is_whole(option, read[0]) and (folder / "pipe").is_fifo()

    (folder / "target").write_bytes(b"old")
    (folder / "target").chmod(0o640)
    (folder / "link").symlink_to("target")
    assert run(folder, option, folder / "link").code == 0
    assert (folder / "link").is_symlink() and is_whole(option, (folder / "target").read_bytes())
    assert stat.S_IMODE((folder / "target").stat().st_mode) == 0o640

    with (folder / "log").open("ab") as log:
        log.write(b"earlier\n")
        log.flush()
        assert run(folder, option, "/dev/stdout", stdout=log.fileno()).code == 0
    assert (folder / "log").read_bytes().startswith(b"earlier\n")
    assert OPTIONS[option][1] in (folder / "log").read_bytes()
    assert OPTIONS[option][1] in run(folder, option, "-").out

    refused = run(folder, option, folder)
    assert refused.code == 2 and "is a folder" in refused.err
    assert names(folder) == ["link", "log", "pipe", "target"]


@pytest.mark.parametrize("option", OPTIONS)
def test_where_nothing_is(folder: Path, option: str) -> None:
    for place, code, words in (
        (folder / "none" / "file", 2, "there is no folder"),
        (folder / ("n" * 256), 1, "File name too long"),
        ("/proc/file", 1, "/proc/file cannot be written"),
    ):
        refused = run(folder, option, place)
        assert refused.code == code and is_error(refused) and words in refused.err, refused
        assert refused.err.count("error: ") == refused.err.count("hint: ") == 1
    assert names(folder) == []
    assert run(folder, option, folder / "new").code == 0
    assert names(folder) == ["new"] and is_whole(option, (folder / "new").read_bytes())


@pytest.mark.parametrize(
    ("option", "there"), [*((option, True) for option in OPTIONS), ("--save-trace", False), ("csv -o", False)]
)
def test_a_full_disk(folder: Path, option: str, there: bool) -> None:
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        (disk / "most").write_bytes(b"x" * 4096)
        if there:
            (disk / "file").write_bytes(b"old")
        else:
            (disk / "rest").write_bytes(b"x" * 4096)
        before = names(disk)
        full = run(folder, option, disk / "file")
        assert full.code == 1 and "file cannot be written: No space left on device" in full.err, full.err
        assert "hint: free some space" in full.err
        assert names(disk) == before and (not there or (disk / "file").read_bytes() == b"old")
    finally:
        subprocess.run(["umount", disk], check=True)


def nobody() -> None:
    os.setegid(NOBODY)
    os.seteuid(NOBODY)


@as_root
@pytest.mark.parametrize("option", OPTIONS)
def test_as_nobody(folder: Path, option: str) -> None:
    refused = run(folder, option, folder / "new", before=nobody)
    assert refused.code == 1 and is_error(refused) and "new cannot be written: Permission denied" in refused.err
    (folder / "file").write_bytes(b"mine")
    refused = run(folder, option, folder / "file", before=nobody)
    assert refused.code == 1 and is_error(refused) and (folder / "file").read_bytes() == b"mine"
    (folder / "file").chmod(0o666)
    assert run(folder, option, folder / "file", before=nobody).code == 0
    assert is_whole(option, (folder / "file").read_bytes()) and (folder / "file").stat().st_uid == 0
    assert run(folder, option, "/dev/null", before=nobody).code == 0
    assert names(folder) == ["file"]


def _pack(*arguments: str | Path, **more: object) -> Ended:
    return forked.moecli("pack", "tiny", "--quiet", "-o", *arguments, environment={"MOECLI_THREADS": "1"}, **more)  # type: ignore[arg-type]


def _make_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _make_file(path: Path) -> Path:
    path.write_bytes(b"mine")
    return path


def _make_full_folder(path: Path) -> Path:
    path.mkdir()
    (path / "mine").touch()
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: Path("/dev/null"), "/dev/null is there already and is not a packed model"),
        (_make_pipe, "is there already and is not a packed model"),
        (_make_file, "is there already and is not a packed model"),
        (_make_full_folder, "is there already and is not a packed model"),
        (lambda path: _make_file(path) / "below", "cannot be written: Not a directory"),
        (lambda path: path.with_name("n" * 250), "cannot be written: File name too long"),
        (lambda _: Path("/proc/new"), "/proc/new"),
    ],
)
def test_a_store_that_cannot_be_there(folder: Path, make: Callable[[Path], Path], words: str) -> None:
    path = make(folder / "place")
    before = sorted(folder.rglob("*"))
    refused = _pack(path)
    assert (refused.code, refused.out) == (1, b"") and refused.err.count("error: ") == 1, refused
    assert words in refused.err and sorted(folder.rglob("*")) == before


def test_a_store_behind_a_link(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "link").symlink_to("data/store")
    packed = _pack(folder / "link")
    assert packed.code == 0, packed.err
    assert packed.out == os.fsencode(f"{os.path.realpath(folder)}/data/store\n") and (folder / "link").is_symlink()
    assert names(folder / "data") == ["store"]
    (folder / "there").symlink_to(folder / "data" / "store")
    assert _pack(folder / "there").out == packed.out


@as_root
def test_a_store_as_nobody(folder: Path) -> None:
    refused = _pack(folder / "store", before=nobody)
    assert refused.code == 1 and "Permission denied" in refused.err
    folder.chmod(0o777)
    assert _pack(folder / "store", before=nobody).code == 0
    assert (folder / "store").stat().st_uid == NOBODY


COMMANDS = (
    ("--help",), ("--version",), ("completion", "bash"), ("inspect", "tiny"), ("inspect", "tiny", "--json"), ("list",),
    ("memory", "tiny", "--json"), ("run", "tiny", "The sea", "-n", "2"),
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_streams_that_are_full_or_closed(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Only stdout matters: without it the answer is lost, and that is a failure."""

    def run(**more: object) -> Ended:
        return forked.moecli(*command, environment={"MOECLI_THREADS": "1"}, **more)  # type: ignore[arg-type]

    good = run()
    assert good.code == 0 and good.out, good.err
    expected = {"error: stdout cannot be written: Bad file descriptor": (1,), "": (2,)}
    for words, closed in expected.items():
        ended = run(closed=closed)
        assert words in ended.err and "Traceback" not in ended.err
        assert (ended.code, bool(ended.out)) == ((1, False) if words else (0, True)), ended
    assert run(closed=(0,)).code == 0
    assert run(closed=(0, 1, 2)).code == 1
    with open("/dev/full", "w") as full:  # noqa: PTH123
        ended = run(stdout=full.fileno())
        assert ended.code == 1 and "error: stdout cannot be written: No space left on device" in ended.err
        assert run(before=lambda: os.dup2(full.fileno(), 2)).code == 0
    reading, writing = os.pipe()
    os.close(reading)
    gone = run(stdout=writing)
    os.close(writing)
    assert gone.code == 1 and "error" not in gone.err and "Broken pipe" not in gone.err, gone.err


def test_a_closed_stdout_gets_no_other_file(tmp_path: Path) -> None:
    """A file that is opened first would become descriptor 1 and get the answer."""
    trace = tmp_path / "trace"
    ended = forked.moecli(*_RUN, trace, closed=(1, 2), environment={"MOECLI_THREADS": "1"})
    assert ended.code == 1
    assert files.read(trace).tokens > 0


def test_a_path_that_is_not_utf8_arrives_in_its_own_bytes(folder: Path) -> None:
    path = os.fsdecode(os.fsencode(folder) + b"/caf\xe9")
    packed = _pack(path)
    assert packed.code == 0, packed.err
    assert packed.out == os.fsencode(os.path.realpath(path)) + b"\n"
    document = json.loads(_pack(path, "--json").out)
    assert document["path"] == os.path.realpath(path)
