"""Files that a user names for output: whole or as they were, into what is no file, with the owner they had."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moecli.errors import DiskError
from moecli.store import filesystem
from moecli.store.filesystem import check_writable, nearest_folder, unwritable, write
from tests.support.forked import NOBODY
from tests.support.power import FATES, Disk, record
from tests.support.processes import in_child

pytestmark = pytest.mark.skipif(os.name == "nt", reason="devices, pipes and owners are POSIX")
as_root = pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can be somebody else")
PARTS = [b"first ", b"second"]
WHOLE = b"first second"


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that everybody can reach."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    yield made
    made.chmod(0o755)
    shutil.rmtree(made)


def _new(folder: Path) -> Path:
    return folder / "file"


def _there(folder: Path) -> Path:
    (folder / "file").write_bytes(b"old and longer than the new")
    return folder / "file"


def _longest_name(folder: Path) -> Path:
    return folder / ("n" * 255)


def _link(folder: Path) -> Path:
    (folder / "data").mkdir()
    _there(folder / "data")
    (folder / "link").symlink_to("data/file")
    return folder / "link"


def _link_to_link(folder: Path) -> Path:
    (folder / "links").mkdir()
    (folder / "links" / "again").symlink_to("../link")
    _link(folder)
    return folder / "links" / "again"


def _dangling(folder: Path) -> Path:
    (folder / "data").mkdir()
    (folder / "link").symlink_to(folder / "data" / "file")
    return folder / "link"


@pytest.mark.parametrize("make", [_new, _there, _longest_name, _link, _link_to_link, _dangling])
def test_regular_files_and_links_to_them(folder: Path, make: Callable[[Path], Path]) -> None:
    path = make(folder)
    linked, files = path.is_symlink(), sum(len(names) for _, _, names in os.walk(folder))
    target = Path(os.path.realpath(path))
    fresh = not target.exists()
    check_writable(path)
    assert target.exists() != fresh
    write(path, PARTS)
    assert path.read_bytes() == WHOLE
    assert path.is_symlink() == linked and target.is_file() and not target.is_symlink()
    assert sum(len(names) for _, _, names in os.walk(folder)) == files + fresh


def test_a_new_file_obeys_the_umask_and_an_old_one_keeps_its_mode(folder: Path) -> None:
    earlier = os.umask(0o027)
    try:
        for name, mode in (("new", None), ("private", 0o600), ("open", 0o666), ("program", 0o750), ("set", 0o2640)):
            path = folder / name
            if mode is not None:
                path.touch()
                path.chmod(mode)
            write(path, PARTS)
            assert stat.S_IMODE(path.stat().st_mode) == (0o640 if mode is None else mode), name
    finally:
        os.umask(earlier)


@as_root
def test_the_owner_stays(folder: Path) -> None:
    path = _there(folder)
    os.chown(path, NOBODY, NOBODY)
    write(path, PARTS)
    assert (path.stat().st_uid, path.stat().st_gid, path.read_bytes()) == (NOBODY, NOBODY, WHOLE)


def _somebody() -> None:
    os.setegid(NOBODY)
    os.seteuid(NOBODY)


@as_root
@pytest.mark.parametrize(
    ("mode_of_folder", "mode_of_file", "words"),
    [
        (0o777, None, ""),
        (0o777, 0o666, ""),  # root's: only written into, or it would be somebody else's
        (0o755, 0o666, ""),  # nothing can be made beside it
        (0o755, None, "Permission denied"),
        (0o777, 0o644, "Permission denied"),
        (0o700, 0o666, "Permission denied"),
    ],
)
def test_as_somebody_else(folder: Path, mode_of_folder: int, mode_of_file: int | None, words: str) -> None:
    path = folder / "file"
    if mode_of_file is not None:
        path.write_bytes(b"old")
        path.chmod(mode_of_file)
    folder.chmod(mode_of_folder)

    def as_somebody(action: Callable[[], None]) -> int | str:
        def begin() -> None:
            _somebody()
            action()

        return in_child(begin)

    for action in (lambda: check_writable(path), lambda: write(path, PARTS)):
        found = as_somebody(action)
        assert found == 0 if not words else words in str(found) and str(path) in str(found)
    folder.chmod(0o755)
    assert [each.name for each in folder.iterdir()] == ([] if words and mode_of_file is None else ["file"])
    if path.exists():
        assert path.read_bytes() == (b"old" if words else WHOLE)
        assert path.stat().st_uid == (NOBODY if mode_of_file is None else 0)


@as_root
def test_a_file_that_its_owner_protected_stays(folder: Path) -> None:
    path = _there(folder)
    path.chmod(0o444)
    os.chown(path, NOBODY, NOBODY)
    folder.chmod(0o777)

    def overwrite() -> None:
        _somebody()
        write(path, PARTS)

    assert "Permission denied" in str(in_child(overwrite))
    assert path.read_bytes().startswith(b"old")


@pytest.mark.parametrize("name", ["/dev/null", "/dev/full", "link"])
def test_devices_stay_devices(folder: Path, name: str) -> None:
    if name == "link":
        (folder / name).symlink_to("/dev/null")
    path, before = folder / name, (folder / name).stat()
    check_writable(path)
    if name == "/dev/full":
        with pytest.raises(DiskError, match="/dev/full cannot be written: No space left"):
            write(path, PARTS)
    else:
        write(path, PARTS)
    after = path.stat()
    assert stat.S_ISCHR(after.st_mode) and (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert path.is_symlink() == (name == "link")


def test_a_pipe_gets_it(folder: Path) -> None:
    path = folder / "pipe"
    os.mkfifo(path)
    check_writable(path)  # waits for nobody
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    write(path, PARTS)
    reader.join()
    assert read == [WHOLE] and path.is_fifo()


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}", "link"])
def test_an_open_file_goes_on_where_it_is(folder: Path, name: str) -> None:
    """As `--trace /dev/fd/3 3>>log` asks, of files and of pipes."""
    with (folder / "log").open("wb") as log:
        log.write(b"before ")
        log.flush()
        path = folder / name.format(log.fileno())
        if name == "link":
            path.symlink_to(f"/dev/fd/{log.fileno()}")
        check_writable(path)
        write(path, PARTS)
        log.write(b" after")
    assert (folder / "log").read_bytes() == b"before first second after"
    reading, writing = os.pipe()
    write(Path(f"/dev/fd/{writing}"), PARTS)
    assert os.read(reading, 100) == WHOLE
    os.close(reading)
    with pytest.raises(BrokenPipeError):  # the program ends quietly
        write(Path(f"/dev/fd/{writing}"), PARTS)
    os.close(writing)
    for refused in (check_writable, lambda path: write(path, PARTS)):
        with pytest.raises(DiskError, match="Bad file descriptor"):
            refused(Path(f"/dev/fd/{writing}"))


def _folder(folder: Path) -> Path:
    return folder


def _nowhere(folder: Path) -> Path:
    return folder / "none" / "file"


def _too_long(folder: Path) -> Path:
    return folder / ("n" * 256)


def _below_a_file(folder: Path) -> Path:
    return _there(folder) / "file"


def _circle(folder: Path) -> Path:
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to("one")
    return folder / "one"


def _link_to_nowhere(folder: Path) -> Path:
    (folder / "link").symlink_to("none/file")
    return folder / "link"


@pytest.mark.parametrize("make", [_folder, _nowhere, _too_long, _below_a_file, _circle, _link_to_nowhere])
def test_what_cannot_be_written_is_refused_before_and_then(folder: Path, make: Callable[[Path], Path]) -> None:
    path = make(folder)
    before = sorted(folder.rglob("*"))
    for refused in (check_writable, lambda path: write(path, PARTS)):
        with pytest.raises(DiskError, match=r"cannot be written: [A-Z]") as caught:
            refused(path)
        assert str(path) in caught.value.message and caught.value.hint
    assert sorted(folder.rglob("*")) == before


def _fails() -> Iterator[bytes]:
    yield b"x" * 100_000
    raise KeyboardInterrupt


@pytest.mark.parametrize("there", [True, False])
def test_ctrl_c_leaves_what_was(folder: Path, there: bool) -> None:
    path = _there(folder) if there else _new(folder)
    with pytest.raises(KeyboardInterrupt):
        write(path, _fails())
    assert [each.read_bytes() for each in folder.iterdir()] == [b"old and longer than the new"] * there


def test_what_stopped_it_is_told_even_where_the_new_file_is_gone(folder: Path) -> None:
    path = _there(folder)

    def parts() -> Iterator[bytes]:
        yield b"x" * 100_000
        for other in set(folder.iterdir()) - {path}:
            other.unlink()
        yield from _fails()

    with pytest.raises(KeyboardInterrupt):
        write(path, parts())
    assert [each.read_bytes() for each in folder.iterdir()] == [b"old and longer than the new"]


@pytest.mark.parametrize("there", [True, False])
def test_a_limit_of_size_leaves_what_was(folder: Path, there: bool) -> None:
    path = _there(folder) if there else _new(folder)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        write(path, [b"x" * 100_000])

    assert "cannot be written: File too large" in str(in_child(limited))
    assert [each.read_bytes() for each in folder.iterdir()] == [b"old and longer than the new"] * there


@pytest.fixture
def full_disk(folder: Path) -> Iterator[Path]:
    """A file of 40 KiB on a disk of 64 KiB, mounted read-only if it is asked so."""
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    (disk / "file").write_bytes(b"o" * 40_000)
    yield disk / "file"
    subprocess.run(["umount", disk], check=True)


@as_root
def test_a_full_and_a_read_only_disk_leave_what_was(full_disk: Path) -> None:
    with pytest.raises(DiskError, match="No space left on device"):
        write(full_disk, [b"x" * 60_000])
    write(full_disk.with_name("small"), PARTS)
    subprocess.run(["mount", "-o", "remount,ro", full_disk.parent], check=True)
    for path in (full_disk, full_disk.with_name("new")):
        for refused in (check_writable, lambda path: write(path, PARTS)):
            with pytest.raises(DiskError, match="Read-only file system"):
                refused(path)
    assert {each.name: each.stat().st_size for each in full_disk.parent.iterdir()} == {"file": 40_000, "small": 12}


@as_root
def test_a_file_that_is_mounted_by_itself_is_written_into(full_disk: Path) -> None:
    """As containers do with `-v answer.json:/answer.json`."""
    path = full_disk.parent.with_name("mounted")
    path.touch()
    subprocess.run(["mount", "--bind", full_disk, path], check=True)
    try:
        write(path, PARTS)
    finally:
        subprocess.run(["umount", path], check=True)
    assert full_disk.read_bytes() == WHOLE and path.read_bytes() == b""


def test_the_nearest_folder_is_one_that_can_be_looked_at(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for below in ("none", "none/deep", "file", "file/below", "x" * 300, f"{'x' * 300}/models", "x/" * 2500):
        assert nearest_folder(tmp_path / below) == tmp_path
    assert nearest_folder(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EROFS, "no writing"), "a/b cannot be written: no writing"),
        (OSError(errno.EIO, "it fails", "a/b/c"), "a/b/c cannot be written: it fails"),
        (OSError("of no number"), "a/b cannot be written: of no number"),
    ],
)
def test_what_the_system_says_is_said(error: OSError, words: str) -> None:
    assert unwritable(Path("a/b"), error).message == words


def test_a_power_cut_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """Whatever of the new file is on the disk by then, it has no name before all of it is."""
    before, root = tmp_path / "before", tmp_path / "root"
    for each in (before, root):
        each.mkdir()
        (each / "file").write_bytes(b"old")
    program = (
        "import pathlib, sys; from moecli.store import filesystem as f; f.write(pathlib.Path(sys.argv[1]), [b'new'])"
    )
    result, calls = record([sys.executable, "-c", program, str(root / "file")], root, tmp_path, os.environ)
    assert result.returncode == 0 and (root / "file").read_bytes() == b"new", result.stderr
    disk, found = Disk(before, root), set()
    for number, call in enumerate(calls):
        disk.apply(call)
        for fate in FATES:
            disk.lay_out(left := tmp_path / f"{fate}-{number}", fate, number)
            found.add((left / "file").read_bytes())
    assert found == {b"old", b"new"}


@pytest.mark.parametrize("hidden", [errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOSPC])
def test_where_nothing_can_be_made_beside_it_a_file_is_written_into(folder: Path, hidden: int, monkeypatch) -> None:
    """Only where that is forbidden: a disk that fails or is full may not spoil what is there."""
    path, touch = _there(folder), Path.touch

    def refused(self: Path, **more: bool) -> None:
        if self.name.startswith(".moecli-"):
            raise OSError(hidden, os.strerror(hidden))
        touch(self, **more)

    monkeypatch.setattr(Path, "touch", refused)
    if hidden in (errno.EIO, errno.ENOSPC):
        with pytest.raises(DiskError, match=f"{path} cannot be written: {os.strerror(hidden)}") as said:
            write(path, PARTS)
        full = hidden == errno.ENOSPC
        assert said.value.hint == ("free some space, or name a file on another disk" if full else "name another file")
        assert path.read_bytes() == b"old and longer than the new"
    else:
        write(path, PARTS)
        assert path.read_bytes() == WHOLE
    assert [each.name for each in folder.iterdir()] == ["file"]


def test_a_new_file_is_there_when_all_of_it_is(folder: Path) -> None:
    """Under a name of its own until then, beside the one it gets, with 16 letters of chance."""
    seen: list[list[str]] = []

    def parts() -> Iterator[bytes]:
        yield b"x"
        seen.append(sorted(each.name for each in folder.iterdir()))
        yield b"y"

    write(folder / "file", parts())
    ((growing,),) = seen
    assert growing.startswith(".moecli-") and len(growing) == len(".moecli-") + 16
    assert [(each.name, each.read_bytes()) for each in folder.iterdir()] == [("file", b"xy")]


@pytest.mark.parametrize(("links", "followed"), [(1, True), (39, True), (40, False), (100, False)])
def test_links_are_followed_up_to_a_number(folder: Path, links: int, followed: bool) -> None:
    """About the kernel's own, which counts those of /dev/fd too."""
    with (folder / "log").open("wb") as log:
        (folder / "1").symlink_to(f"/dev/fd/{log.fileno()}")
        for number in range(2, links + 1):
            (folder / f"{number}").symlink_to(f"{number - 1}")
        assert filesystem._descriptor(folder / f"{links}") == (log.fileno() if followed else None)


@pytest.mark.parametrize(
    ("name", "descriptor"),
    [
        ("-", 1),
        ("/dev/stdout", 1),
        ("/dev/stderr", 2),
        ("/dev/fd/17", 17),
        ("/dev/null", None),
        ("/dev/fd", None),
        ("x", None),
    ],
)
def test_paths_that_stand_for_an_open_file(name: str, descriptor: int | None) -> None:
    if name.startswith("/dev/std") and not Path("/dev/stdout").is_symlink():
        pytest.skip("no such links here")
    assert filesystem._descriptor(Path(name)) == descriptor


def test_what_is_read_directly_is_tried_on_the_file_and_closed(folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(bytes(8192))
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)  # tmpfs of old kernels refuses even this
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert filesystem.reads_directly(path)
    os.close(descriptor)
    (folder / "empty").touch()
    for other in (folder / "empty", folder / "none", folder):
        assert not filesystem.reads_directly(other)
    assert len(os.listdir("/proc/self/fd")) == before - 1  # noqa: PTH208


def test_free_space_is_that_of_the_nearest_folder(folder: Path, monkeypatch) -> None:
    asked: list[Path] = []
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (asked.append(path), usage(path))[1])
    assert filesystem.free_space(folder / "none" / "deep") > 0 and asked == [folder]
