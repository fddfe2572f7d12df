"""The stores on this machine are listed, found by name and removed; nothing else is touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from moecli import settings
from moecli.errors import DiskError, ModelNotFound
from moecli.library import stores
from moecli.library.resolve import Kind, resolve
from moecli.store.journal import locked
from moecli.store.packed import PackedStore
from moecli.store.source import open_source, origin_of
from moecli.store.write import pack, partial_folder
from tests.store.test_interrupted import kill_at
from tests.support.processes import in_child
from tests.support.stores import packed

pytestmark = pytest.mark.slow


@pytest.fixture
def made(checkpoint: Path, store: PackedStore) -> dict[str, Path]:
    """A q4 store, a q8 store that says it came from the Hub, and an unfinished one."""
    q4 = stores.default_folder("five-layers", "q4")
    shutil.copytree(store.folder, q4)
    weights = open_source(checkpoint)
    q8 = stores.default_folder("someone/five-layers", "q8")
    pack(weights, checkpoint, q8, "q8", origin_of("five-layers", "someone/five-layers", "c0ffee", checkpoint, weights))
    nf4 = stores.default_folder("five-layers", "nf4")
    assert in_child(lambda: packed(checkpoint, nf4, "nf4", kill_at(60))) == -9
    return {"q4": q4, "q8": q8, "partial": partial_folder(nf4)}


def test_every_store_is_listed(made, checkpoint):
    (settings.stores() / "notes").mkdir()
    (settings.stores() / "file.txt").write_text("")
    unfinished, one, hub = stores.local_stores()
    assert (one.name, one.model, one.dtype, one.complete) == ("five-layers-q4", "five-layers", "q4", True)
    assert (one.source, one.revision, one.path) == (str(checkpoint), None, made["q4"])
    assert one.bytes >= PackedStore.open(made["q4"]).bytes
    assert (unfinished.name, unfinished.dtype, unfinished.complete) == ("five-layers-nf4.partial", "nf4", False)
    assert (hub.name, hub.source, hub.revision) == ("someone--five-layers-q8", "someone/five-layers", "c0ffee")


def test_without_a_home_there_are_none():
    assert stores.local_stores() == [] and resolve("mixtral").store is None


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("five-layers", "q4", "q4"), ("five-layers", "q8", "q8"), ("Five-Layers", "auto", "q4"),
        ("five-layers", "nf4", "q4"), ("someone/five-layers", "auto", "q8"), ("someone--five-layers-q8", "q4", "q8"),
        ("five", "auto", None), ("five-layers-nf4.partial", "nf4", None),
    ],
)  # fmt: skip
def test_a_store_is_found_by_any_of_its_names(name, dtype, expected, made):
    if expected is None:
        with pytest.raises(ModelNotFound):
            resolve(name, dtype=dtype)
    else:
        ref = resolve(name, dtype=dtype)
        assert ref.kind is Kind.STORE and ref.store.dtype == expected and ref.folder == ref.store.path


def test_a_damaged_store_is_listed_but_not_offered(made):
    (made["q4"] / "manifest.json").write_text("{}")
    listed = next(each for each in stores.local_stores() if each.path == made["q4"])
    assert (listed.dtype, listed.complete) == ("unknown", False)
    assert resolve("five-layers", dtype="q4").store.dtype == "q8"


@pytest.mark.parametrize("which", ["q4", "q8", "partial"])
def test_removing_says_what_was_freed(which, made):
    size = next(each.bytes for each in stores.local_stores() if each.path == made[which])
    assert stores.remove(made[which]) == size and not made[which].exists()
    assert len(stores.local_stores()) == 2


def test_only_stores_are_removed(made, tmp_path):
    with pytest.raises(ModelNotFound, match="not a packed model"):
        stores.remove(tmp_path)
    with pytest.raises(ModelNotFound, match="not a packed model"):
        stores.remove(tmp_path / "nowhere")
    (made["q4"] / "diary.txt").write_text("dear diary")
    with pytest.raises(DiskError, match=r"holds 'diary\.txt'"):
        stores.remove(made["q4"])
    link = tmp_path / "link"
    link.symlink_to(made["q8"])
    with pytest.raises(ModelNotFound):
        stores.remove(link)
    assert len(stores.local_stores()) == 3


def test_other_programs_manifests_are_no_stores(tmp_path):
    for name in ("journal", "manifest.json"):
        for text in ("{}", "7", json.dumps({"dtype": "q4", "origin": {}}), json.dumps({"name": "a web page"})):
            (tmp_path / name).write_text(text + "\n")
            assert stores.describe(tmp_path) is None


def test_what_is_being_packed_is_not_removed(made):
    with locked(made["partial"]), pytest.raises(DiskError, match="another moecli is packing"):
        stores.remove(made["partial"])
    assert made["partial"].exists()
