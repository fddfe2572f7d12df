"""What lies in the two places of models, and the disks they are on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import moecli
from moecli import settings
from moecli.doctor import disks, models
from moecli.library.stores import LocalStore, describe
from moecli.store import journal
from tests.support import stores

TINY = Path(moecli.__file__).parent / "tiny"


def packed() -> LocalStore:
    store = describe(stores.packed(TINY, settings.stores() / "tiny-q4").folder)
    assert store is not None
    return store


def unfinished() -> int:
    """Pack the beginning of a model; its size."""
    folder = settings.stores() / "half-q4"
    folder.mkdir(parents=True)
    origin = {"model": "half", "repo": None, "revision": None, "path": "/somewhere", "fingerprint": ""}
    (folder / journal.FILE).write_text(json.dumps({"origin": origin, "dtype": "q4"}) + "\n")
    (folder / "experts-000.growing").write_bytes(bytes(8192))
    return sum(journal.occupied(file) for file in folder.iterdir())


def download(name: str, size: int) -> None:
    blobs = settings.hub_cache() / "models--org--name" / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / name).write_bytes(bytes(size))


def test_models_are_counted_and_what_is_unfinished() -> None:
    assert models.hub_models() == models.Held() and models.packed_models() == (models.Held(), [])
    download("a" * 64, 1000)
    assert models.hub_models() == models.Held(1, 1000)
    download("b" * 64 + ".incomplete", 300)
    assert models.hub_models() == models.Held(1, 1300, 1, 300)
    store, half = packed(), unfinished()
    assert models.packed_models() == (models.Held(2, store.bytes + half, 1, half), [store])


def test_the_built_in_model_is_whole_and_has_its_price() -> None:
    found = models.built_in(2**40)
    assert found.failure is None and found.fits and 100e6 < (found.takes_bytes or 0) < 2e9
    poor = models.built_in(100 * 2**20)
    assert not poor.fits and poor.failure is None


def test_folders_on_one_disk_are_measured_once(tmp_path: Path) -> None:
    (disk,) = disks.look((), None)
    assert [folder.purpose for folder in disk.folders] == ["packed models", "Hub cache"]
    assert disk.file_system and 0 < disk.free_bytes <= disk.total_bytes
    assert not settings.stores().exists()
    assert disk.not_measured or (disk.read_bytes_per_s and disk.measured_on is None)


def test_a_large_store_is_read_instead_of_a_new_file() -> None:
    store = packed()
    (disk,) = disks.look([replace(store, bytes=2**30)], None)
    assert disk.measured_on == "tiny-q4" and disk.read_bytes_per_s
    (unmeasured,) = disks.look([store], "not asked for")
    assert unmeasured.not_measured == "not asked for" and unmeasured.measured_on is unmeasured.direct_io is None


def test_folders_on_two_disks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one disk is all there is")
    monkeypatch.setenv("HF_HUB_CACHE", str(other / "moecli-no-such-folder"))
    first, second = disks.look((), "not asked for")
    assert [folder.purpose for folder in (*first.folders, *second.folders)] == ["packed models", "Hub cache"]
    assert second.file_system == "tmpfs" and first.file_system != "tmpfs"
