"""Packing that is killed, crowded or cheated: it goes on where it stopped, or says why it cannot."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from moecli.errors import CheckpointError, DiskError
from moecli.model.families import load_config
from moecli.store import journal, manifest
from moecli.store.journal import locked
from moecli.store.layout import choose_layout
from moecli.store.packed import PackedStore
from moecli.store.source import announced, open_source, origin_of
from moecli.store.write import pack, partial_folder
from tests.support.processes import in_child
from tests.support.stores import contents, packed

pytestmark = pytest.mark.slow


@pytest.fixture
def source(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that may be changed; the store of it says it lies elsewhere."""
    return shutil.copytree(checkpoint, tmp_path / checkpoint.name)


def weights_of(folder: Path) -> dict[str, bytes]:
    return contents(folder, but=manifest.FILE)


def kill_at(count: int):
    """A progress that ends the process, as `kill -9` does, when it is told so often."""
    told = iter(range(count))

    def progress(done: int, total: int) -> None:
        if next(told, None) is None:
            os.kill(os.getpid(), 9)

    return progress


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment_it_ends_in_the_same_store(seed, checkpoint, store, tmp_path):
    target, chance, kills = tmp_path / "store", random.Random(seed), 0

    def slowly() -> None:
        packed(checkpoint, target, progress=lambda done, total: time.sleep(0.002))  # at least 0.2 s from the start

    while kills < 12 and (ended := in_child(slowly, kill_after=chance.uniform(0.005, 0.15))) != 0:
        assert ended == -signal.SIGALRM and (not target.exists() or PackedStore.open(target))
        kills += 1
    packed(checkpoint, target)
    assert kills and contents(target) == contents(store.folder)


def test_finished_layers_are_not_packed_again(checkpoint, store, tmp_path):
    target = tmp_path / "store"
    assert in_child(lambda: packed(checkpoint, target, progress=kill_at(80))) == -9
    assert partial_folder(target).is_dir() and not target.exists()
    told: list[tuple[int, int]] = []
    packed(checkpoint, target, progress=lambda *each: told.append(each))
    assert 0.4 < told[0][0] / told[0][1] < 0.8 and told[-1][0] == told[-1][1]
    assert contents(target) == contents(store.folder) and not partial_folder(target).exists()


def test_a_lock_left_behind_is_removed(checkpoint, store, tmp_path):
    target = shutil.copytree(store.folder, tmp_path / "store")
    (target / journal.LOCK).touch()
    assert contents(packed(checkpoint, target).folder) == contents(store.folder)


def test_a_kill_before_the_last_step_loses_nothing(checkpoint, store, tmp_path):
    target = tmp_path / "store"
    (shutil.copytree(store.folder, partial_folder(target)) / journal.LOCK).touch()
    told: list[object] = []
    packed(checkpoint, target, progress=lambda *each: told.append(each))
    assert not told and contents(target) == contents(store.folder)


@pytest.mark.parametrize("cut", [1, 30, 400])
def test_a_journal_line_that_was_cut_is_work_to_be_done_again(cut, checkpoint, store, tmp_path):
    target = tmp_path / "store"
    assert in_child(lambda: packed(checkpoint, target, progress=kill_at(80))) == -9
    lines = partial_folder(target) / journal.FILE
    lines.write_bytes(lines.read_bytes()[:-cut])
    packed(checkpoint, target)
    assert contents(target) == contents(store.folder)


def test_an_unfinished_store_is_no_model(checkpoint, tmp_path):
    target = tmp_path / "store"
    assert in_child(lambda: packed(checkpoint, target, progress=kill_at(40))) == -9
    with pytest.raises(CheckpointError, match="is not finished"):
        PackedStore.open(partial_folder(target))
    with pytest.raises(CheckpointError, match="not a packed model"):
        PackedStore.open(shutil.copytree(partial_folder(target), tmp_path / "renamed"))


def test_lost_files_of_unfinished_work_are_noticed(checkpoint, tmp_path):
    target = tmp_path / "store"
    assert in_child(lambda: packed(checkpoint, target, progress=kill_at(80))) == -9
    (partial_folder(target) / "experts-001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lost its experts-001\.safetensors") as refused:
        packed(checkpoint, target)
    assert "moecli rm" in refused.value.hint


def test_a_source_that_changed_is_not_gone_on_with(source, tmp_path):
    target = tmp_path / "store"
    assert in_child(lambda: packed(source, target, progress=kill_at(80))) == -9
    os.utime(source / "model-001.safetensors")
    with pytest.raises(CheckpointError, match="before it changed"):
        packed(source, target)


def test_a_source_that_changes_meanwhile_gives_no_store(source, tmp_path):
    target = tmp_path / "store"
    with pytest.raises(CheckpointError, match="changed while it was being packed"):
        packed(source, target, progress=lambda done, total: os.utime(source / "model-001.safetensors"))
    assert not target.exists()


def test_a_source_that_is_cut_meanwhile_is_named(source, tmp_path):
    def cut(done: int, total: int) -> None:
        os.truncate(source / "model-004.safetensors", 5000)

    with pytest.raises(CheckpointError, match=r"model-004\.safetensors is damaged.*cut short"):
        packed(source, tmp_path / "store", progress=cut)
    assert not (tmp_path / "store").exists()


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here that fails to be read")
def test_a_read_error_is_named(checkpoint, tmp_path):
    """The start of a process's memory: the system answers EIO."""
    weights = open_source(checkpoint)
    origin = origin_of("x", None, None, checkpoint, weights)
    bad = "model.layers.2.block_sparse_moe.experts.1.w1.weight"
    tensors = weights.checkpoint.tensors
    unreadable = replace(tensors[bad], path=Path("/proc/self/mem"), offset=0)
    failing = announced("x", load_config(checkpoint / "config.json"), lambda: tensors | {bad: unreadable})
    with pytest.raises(CheckpointError, match="Input/output error"):
        pack(failing, checkpoint, tmp_path / "store", "q4", origin)
    assert partial_folder(tmp_path / "store").is_dir()


def test_two_at_once_are_one_too_many(checkpoint, store, tmp_path):
    target = tmp_path / "store"
    refusals: list[object] = []

    def meanwhile(done: int, total: int) -> None:
        if len(refusals) < 2:
            refusals.append(in_child(lambda: packed(checkpoint, target)))

    packed(checkpoint, target, progress=meanwhile)
    assert all("another moecli is packing" in str(refusal) for refusal in refusals) and len(refusals) == 2
    assert contents(target) == contents(store.folder)


def test_a_lock_ends_with_its_folder(tmp_path):
    with locked(tmp_path / "work"), pytest.raises(DiskError, match="another moecli"), locked(tmp_path / "work"):
        pass
    with locked(tmp_path / "work"):
        pass


def test_no_room_is_said_before_the_first_byte(checkpoint, tmp_path, monkeypatch):
    layout = choose_layout(open_source(checkpoint), "q4")
    monkeypatch.setattr("moecli.store.write._SPARE", 2**60)
    with pytest.raises(DiskError, match=r"needs 1.* TiB more on its disk, which has .* free"):
        packed(checkpoint, tmp_path / "deep" / "store")
    assert not (tmp_path / "deep").exists() and sum(layout.sizes.values()) < 2**30


def test_a_disk_that_fills_up_is_said_and_gone_on_from(checkpoint, store, tmp_path):
    """A limit on the size of files stands for it: the system refuses the bytes beyond."""
    target = tmp_path / "store"

    def crowded() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (store.manifest.files["dense.safetensors"].bytes - 1,) * 2)
        packed(checkpoint, target)

    assert "is full" in str(in_child(crowded))
    packed(checkpoint, target)
    assert contents(target) == contents(store.folder)


_ON_A_SMALL_DISK = """
mount -t tmpfs -o size=4M none {disk} || exit 77
{python} - <<'EOF'
import os
from pathlib import Path
from tests.support.stores import contents, packed
import moecli.store.write as write
from moecli.errors import DiskError

disk, source, store = Path("{disk}"), Path("{source}"), Path("{store}")
write._SPARE = 0
filler = disk / "filler"
filler.write_bytes(bytes(3_500_000))
try:
    packed(source, disk / "store")
except DiskError as error:
    print("before:", error.message)
filler.unlink()

def crowd(done, total):
    if done > total // 2 and not filler.exists():
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass

try:
    packed(source, disk / "store", progress=crowd)
except DiskError as error:
    print("during:", error.message, (disk / "store").exists())
filler.unlink()
packed(source, disk / "store")
print("after:", contents(disk / "store") == contents(store))
EOF
"""


def test_a_real_small_disk(checkpoint, store, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = _ON_A_SMALL_DISK.format(disk=disk, python=sys.executable, source=checkpoint, store=store.folder)
    root = Path(__file__).parents[2]
    result = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        capture_output=True, encoding="utf-8", cwd=root, timeout=100,
        env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip("no file system can be mounted here")
    assert result.returncode == 0, result.stderr
    before, during, after = result.stdout.splitlines()
    assert "more on its disk, which has" in before
    assert during.startswith("during: the disk of") and during.endswith("is full False")
    assert after == "after: True"
