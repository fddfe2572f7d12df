"""What lies in the Hugging Face cache: names, hashes, sizes and times, and what a snapshot lacks, in words."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from moecli.errors import ModelNotFound
from moecli.hub import cache

REPO = "someone/some-moe"
ONE, TWO = "a" * 40, "b" * 40


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of one repository."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    found = cache.repository(REPO)
    for name in ("blobs", "refs", f"snapshots/{ONE}", f"snapshots/{TWO}"):
        (found / name).mkdir(parents=True)
    return found


def hold(root: Path, commit: str, *names: str) -> Path:
    folder = root / "snapshots" / commit
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}")
    return folder


def test_where_a_repository_lies(root: Path, tmp_path: Path) -> None:
    assert root == tmp_path / "hub" / "models--someone--some-moe"
    assert cache.lock_folder(REPO) == tmp_path / "hub" / ".locks" / "models--someone--some-moe"


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("a/b", True), ("A.b-c_d/E.f-g_h", True), ("_a/b_", True), ("a/" + "b" * 96, True), ("a/" + "b" * 97, False),
        ("b" * 96 + "/a", True), ("b" * 97 + "/a", False), ("a/b--c", False), ("a/b..c", False), ("a/b.git", False),
        ("a/b.gitx", True), ("-a/b", False), ("a-/b", False), ("a/.b", False), ("a/b.", False), ("a", False),
        ("a/b/c", False),
        ("a/b c", False), ("", False), ("/", False), ("a/caf\xe9", False),
    ],
)  # fmt: skip
def test_names_of_repositories(name: str, good: bool) -> None:
    assert cache.is_repo(name) == good


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("main", True), ("v1.0", True), ("refs/pr/7", True), ("a+b-c.d_e", True), ("x" * 200, True), ("x" * 201, False),
        ("", False), ("/a", False), ("a/", False), ("a//b", False), (".a", False), ("a/.b", False), ("-a", False),
        ("a b", False),
        ("a/../b", False), ("a\n", False),
    ],
)  # fmt: skip
def test_names_of_revisions(text: str, good: bool) -> None:
    assert cache.is_revision(text) == good


@pytest.mark.parametrize(
    ("held", "commit"),
    [
        (ONE, ONE),
        (f"  {ONE}\n", ONE),
        ("v1", "v1"),
        ("a" * 64, "a" * 64),
        ("a" * 65, None),
        ("", None),
        ("../x", None),
        ("a b", None),
    ],
)
def test_what_a_ref_names(held: str, commit: str | None, root: Path) -> None:
    (root / "refs" / "main").write_text(held)
    assert cache.commit(root, "main") == commit
    assert cache.commit(root, ONE) == ONE and cache.commit(root, "refs/pr/7") is None


def test_no_more_of_a_ref_is_read_than_a_name_may_take(root: Path) -> None:
    """A hundred bytes; whatever some other program left behind them is not looked at."""
    for held in (" " * 36 + "a" * 64, "a" * 64 + " " * 36 + "x" * 1000):
        (root / "refs" / "main").write_text(held)
        assert cache.commit(root, "main") == "a" * 64


@pytest.mark.parametrize("size", [0, 5])
def test_the_hash_that_names_a_blob(size: int) -> None:
    """SHA-256 for large files; what git calls a small one."""
    data = b"hello"[:size]
    large, small = (cache.blob_hash("0" * length, size) for length in (64, 40))
    for each in (large, small):
        each.update(data)
    assert large.hexdigest() == hashlib.sha256(data).hexdigest()
    git = {0: "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391", 5: "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"}
    assert small.hexdigest() == git[size]


def test_the_newest_snapshot_comes_first_after_the_one_that_main_names(root: Path) -> None:
    one, two = (hold(root, commit, "config.json", "model.safetensors") for commit in (ONE, TWO))
    empty = root / "snapshots" / ("c" * 40)
    empty.mkdir()
    for newer, older in ((one, two), (two, one)):
        os.utime(newer, (2000, 2000))
        os.utime(older, (1000, 1000))
        assert cache.snapshots(REPO, None) == [newer, older]  # not what holds no config.json
    (root / "refs" / "main").write_text(ONE)
    assert cache.snapshots(REPO, None) == [one, two] and cache.snapshot(REPO) == one
    (root / "refs" / "main").write_text("c" * 40)
    assert cache.snapshots(REPO, None) == [empty, two, one] and cache.snapshot(REPO) == two
    assert cache.snapshots(REPO, "main") == [empty] and cache.snapshot(REPO, "main") is None
    assert cache.snapshots(REPO, TWO) == [two] and cache.snapshots(REPO, "d" * 40) == []
    assert cache.snapshots("no/such", None) == [] == cache.snapshots("none", None) == cache.snapshots(REPO, "../x")


SHARDS = tuple(f"model-{number:05}-of-00004.safetensors" for number in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("names", "lack"),
    [
        ((), "its config.json is missing"), (("model.safetensors",), "its config.json is missing"),
        (("config.json",), "its weights are missing"), (("config.json", "README.md"), "its weights are missing"),
        (("config.json", "model.safetensors"), None), (("config.json", "model.safetensors", SHARDS[0]), None),
        (("config.json", *SHARDS), None), (("config.json", *SHARDS[:3]), "1 of its 4 weight files are missing"),
        (("config.json", SHARDS[1]), "3 of its 4 weight files are missing"),
        (("config.json", "pytorch_model.bin"), None),
        (("config.json", "adapter_model.safetensors"), "its weights are missing"),
        (("config.json", "weights.safetensors"), None),
    ],
)  # fmt: skip
def test_what_a_snapshot_lacks(names: tuple[str, ...], lack: str | None, root: Path) -> None:
    assert cache.lack(hold(root, ONE, *names)) == lack


def test_an_index_says_which_files_there_are_to_be(root: Path) -> None:
    folder = hold(root, ONE, "config.json", "part-a.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(
        '{"weight_map": {"x": "part-a.safetensors", "y": "part-b.safetensors", "z": "part-c.safetensors"}}'
    )
    assert cache.lack(folder) == "2 of its 3 weight files are missing"
    hold(root, ONE, "part-b.safetensors", "part-c.safetensors")
    assert cache.lack(folder) is None
    index.write_text("{")  # whoever opens the weights will say so
    assert cache.lack(folder) is None
    hold(root, ONE, SHARDS[0])
    index.write_text('{"weight_map": {"x": "part-a.safetensors"}}')
    assert cache.lack(folder) == "3 of its 4 weight files are missing"  # numbers tell more


def test_a_listed_model_in_numbers(root: Path) -> None:
    folder = hold(root, TWO, "config.json")
    for name, size, read in (("one", 100, 5000), ("two.incomplete", 30, 7000), ("three", 7, 6000)):
        (root / "blobs" / name).write_bytes(b"x" * size)
        os.utime(root / "blobs" / name, (read, 1))
    os.utime(folder / "config.json", (10, 1))
    (folder / "model.safetensors").symlink_to("../../blobs/one")
    (root / "refs" / "main").write_text(TWO)
    (found,) = cache.local_models()
    assert found == cache.LocalModel(
        REPO, REPO, TWO, folder, 100 + 30 + 7 + 2, True, (ONE, TWO), 30, 7000.0, damaged=False
    )  # fmt: skip
    (folder / "model.safetensors").unlink()
    (found,) = cache.local_models()
    assert (found.complete, found.revision, found.path) == (False, TWO, folder)


def test_models_are_listed_by_name_and_nothing_else_is(root: Path) -> None:
    hub = root.parent
    for name in (
        "models--b--Two",
        "models--A--one",
        "models--a--three",
        "datasets--a--b",
        "models--a",
        "models--a--b--c",
        "x",
    ):
        (hub / name / "blobs").mkdir(parents=True)
        (hub / name / "blobs" / "1").write_bytes(b"x")
    (hub / "models--a--empty" / "blobs").mkdir(parents=True)
    assert [model.name for model in cache.local_models()] == ["A/one", "a/three", "b/Two"]


def test_a_model_that_cannot_be_read_is_listed_as_damaged(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(root, ONE, "config.json", "model.safetensors")
    hidden, system = root / "snapshots" / ONE / "config.json", Path.stat

    def stat(path: Path, **more: bool) -> os.stat_result:
        if path == hidden:
            raise OSError(errno.EACCES, "Permission denied", str(path))
        return system(path, **more)

    monkeypatch.setattr(Path, "stat", stat)
    (found,) = cache.local_models()
    assert found == cache.LocalModel(REPO, REPO, None, root, 0, False, (), 0, None, damaged=True)
    with pytest.raises(ModelNotFound, match=f"{hidden} cannot be read: Permission denied"):
        cache.lack(hidden.parent)


def test_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    """Names that no file system takes, circles of links and what a file is in the way of are not there."""
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nothing")
    absent = (
        tmp_path / "none",
        tmp_path / "circle",
        tmp_path / "file" / "x",
        tmp_path / ("n" * 300),
        tmp_path / "a\0b",
    )
    for path in (*absent, tmp_path / "dangling"):
        assert cache.status(path) is None and not cache.is_file(path) and not cache.is_folder(path)
    for path in (tmp_path / "none", tmp_path / "circle", tmp_path / "file" / "x"):
        assert cache._mode(path) == 0 and not cache._holds(path)
    assert (
        cache.is_file(tmp_path / "link") and cache._holds(tmp_path / "link") and not cache.is_folder(tmp_path / "link")
    )
    assert cache.is_folder(tmp_path) and not cache.is_file(tmp_path) and not cache._holds(tmp_path)
    assert cache.status(tmp_path / "dangling", follow_symlinks=False) is not None
    assert cache.children(tmp_path / "none") == [] and cache.children(tmp_path) == sorted(tmp_path.iterdir())
    with pytest.raises(ModelNotFound, match="file cannot be read: Not a directory"):
        cache.children(tmp_path / "file")
    assert cache.model_files(tmp_path) == [tmp_path / "file", tmp_path / "link"]
    (tmp_path / "ckpt-0").mkdir()
    (tmp_path / "ckpt-0" / "tensor00000_000").touch()
    assert cache.model_files(tmp_path)[-1] == tmp_path / "ckpt-0" / "tensor00000_000"


def test_what_occupies_the_disk_are_files_and_no_links(root: Path) -> None:
    (root / "blobs" / "in").mkdir()
    for name in ("one", "two.incomplete", "in/three"):
        (root / "blobs" / name).write_bytes(b"x")
    folder = hold(root, ONE, "copied.json")
    (folder / "link").symlink_to("../../blobs/one")
    found = cache.disk_files(root / "blobs", root / "snapshots", root / "none")
    assert {path.relative_to(root).as_posix() for path in found} == {
        "blobs/one", "blobs/two.incomplete", "blobs/in/three", f"snapshots/{ONE}/copied.json",
    }  # fmt: skip
