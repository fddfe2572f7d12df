"""A store and a copy of it: the same bits, each disk asked for as much as it is fast, and copies that are unfit."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from moecli.engine.load import StoreModel, open_model
from moecli.errors import CheckpointError, ConfigError, UsageError
from moecli.experts.readers import File, Range, Readers
from moecli.experts.two_disks import TwoDisks
from moecli.store import manifest
from moecli.store.expert_record import PAGE
from moecli.store.packed import PackedStore
from tests.experts.test_offloaded import IDS, tiered
from tests.support.running import score
from tests.support.stores import Stores, decoder


class PacedReaders(Readers):
    """Real reads, after a pause that depends on the folder; `bytes` counts them by folder."""

    def __init__(self, copy: Path, pauses: dict[Path, float] | None = None) -> None:
        self.pauses, self.bytes = pauses or {}, Counter[Path]()
        super().__init__(2, copy)

    def _file(self, path: Path) -> File:
        time.sleep(self.pauses.get(path.parent, 0))
        self.bytes[path.parent] += 1
        return super()._file(path)


@pytest.fixture
def copied(stores: Stores, tmp_path: Path) -> PackedStore:
    store = stores("qwen2_moe", "q4")
    return store.beside(Path(shutil.copytree(store.folder, tmp_path / "copy")))


def test_a_copy_changes_no_bit(copied: PackedStore) -> None:
    assert copied.copy is not None
    readers = PacedReaders(copied.copy)
    for chunk in (40, 1):
        assert torch.equal(
            score(tiered(copied, 3, readers=readers), IDS, chunk), score(decoder(copied, None), IDS, chunk)
        )
    assert readers.bytes[copied.folder] and readers.bytes[copied.copy]
    model = open_model(copied.folder, copy=copied.copy)
    assert isinstance(model, StoreModel) and model.measure_disk("q4") and model.store.copy == copied.copy


@pytest.mark.parametrize("slower", (0, 1))
def test_the_slower_disk_takes_its_share(slower: int, tmp_path: Path) -> None:
    """Of two disks of which one takes four times as long: about a fifth, and it is not waited for at the end."""
    folders = [tmp_path / name for name in ("one", "other")]
    content = os.urandom(4 * PAGE)
    for folder in folders:
        folder.mkdir()
        (folder / "file").write_bytes(content)
    pauses = {folder: 0.02 if number == slower else 0.005 for number, folder in enumerate(folders)}
    readers = PacedReaders(folders[1], pauses)
    targets = [bytearray(PAGE) for _ in range(200)]
    places = [Range(folders[0] / "file", n % 4 * PAGE, memoryview(target)) for n, target in enumerate(targets)]
    pending = readers.read(places)
    assert pending.done.wait(30)
    pending.check()
    assert all(target == content[n % 4 * PAGE :][:PAGE] for n, target in enumerate(targets))
    assert 0.08 < readers.bytes[folders[slower]] / 200 < 0.35
    readers.close()


def test_a_disk_that_would_be_late_is_not_asked() -> None:
    """One task, and a disk that is ten times as slow: by the rates of the tasks before."""
    tasks = TwoDisks[str]()
    for disk, seconds in ((0, 1.0), (1, 10.0)):
        tasks.put("first")
        assert tasks.get(disk) == "first"
        tasks.done(disk, seconds)
    tasks.put("second")
    got: list[str | None] = []
    slow = threading.Thread(target=lambda: got.append(tasks.get(1)), daemon=True)
    slow.start()
    slow.join(0.1)
    assert slow.is_alive() and tasks.get(0) == "second"
    tasks.put(None)
    slow.join(20)
    assert got == [None]


@pytest.mark.parametrize("how", ("cut short", "gone"))
def test_a_copy_that_fails_is_left_alone_with_one_warning(
    how: str, copied: PackedStore, caplog: pytest.LogCaptureFixture
) -> None:
    assert copied.copy is not None
    expected = score(decoder(copied, None), IDS, 1)
    for file in copied.copy.glob("experts-*"):
        if how == "gone":
            file.unlink()
        else:
            os.truncate(file, PAGE)
    readers = PacedReaders(copied.copy)
    assert torch.equal(score(tiered(copied, 3, readers=readers), IDS, 1), expected)
    assert [record.getMessage().partition(" is left alone")[0] for record in caplog.records] == [
        f"the copy in {copied.copy}"
    ]
    assert readers.bytes[copied.copy] <= 2 < readers.bytes[copied.folder]  # a try of each of its threads


def test_what_is_no_copy_is_refused(stores: Stores, copied: PackedStore, tmp_path: Path) -> None:
    store, other = stores("qwen2_moe", "q4"), stores("qwen2_moe", "q8")
    assert copied.copy is not None
    with pytest.raises(CheckpointError, match=f"is no copy of .*: its {manifest.FILE} is another"):
        store.beside(other.folder)
    os.truncate(next(copied.copy.glob("experts-*")), PAGE)
    with pytest.raises(CheckpointError, match="bytes instead of"):
        store.beside(copied.copy)
    with pytest.raises((CheckpointError, ConfigError), match=f"holds no {manifest.FILE}"):
        store.beside(tmp_path)
    with pytest.raises(UsageError, match="goes with a packed model"):
        open_model(store.folder.parent / "qwen2_moe", copy=store.folder)
