"""The steps of packing, one by one: room that is asked for, when work is made safe, what is noted and removed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moecli import __version__
from moecli.errors import CheckpointError, DiskError
from moecli.store import journal, manifest, write
from moecli.store import remove as removal
from moecli.store.jobs import by_layer, jobs
from moecli.store.journal import Journal
from moecli.store.layout import DENSE, StoreLayout, choose_layout
from moecli.store.manifest import FileChecksums, Origin
from moecli.store.packed import PackedStore, is_partial, is_removed
from moecli.store.remove import finish_removal, leftover, remove
from moecli.store.source import open_source
from moecli.store.verify import verify
from moecli.units import format_bytes
from tests.support.stores import contents, packed

MIB = 2**20


@pytest.fixture
def layout(checkpoint: Path) -> StoreLayout:
    return choose_layout(open_source(checkpoint), "q4")


def test_room_is_asked_for_what_is_not_written_yet(layout: StoreLayout, tmp_path: Path) -> None:
    """And for 16 MiB of manifest and tokenizer."""
    target = tmp_path / "store"
    whole = sum(layout.sizes.values())
    assert write.room_needed(target, layout) == whole + 16 * MIB
    partial = write.partial_folder(target)
    assert partial == tmp_path / "store.partial"
    partial.mkdir()
    (partial / "experts-001.safetensors").write_bytes(b"x" * layout.sizes["experts-001.safetensors"])
    with (partial / DENSE).open("wb") as file:
        file.truncate(layout.sizes[DENSE])  # a hole
    (partial / "journal").write_bytes(b"x" * 5000)
    assert write.room_needed(target, layout) == whole + 16 * MIB - layout.sizes["experts-001.safetensors"]


@pytest.mark.parametrize("besides", [0, 12345])
def test_a_disk_without_room_is_said_before(
    besides: int, layout: StoreLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, asked = tmp_path / "deep" / "store", list[Path]()
    needed = sum(layout.sizes.values()) + 16 * MIB + besides
    free = needed

    def free_space(path: Path) -> int:
        asked.append(path)
        return free

    monkeypatch.setattr(write, "free_space", free_space)
    write.check_room(target, layout, besides)
    assert asked == [tmp_path / "deep"]
    free -= 1
    with pytest.raises(DiskError) as refused:
        write.check_room(target, layout, besides)
    assert refused.value.message == (
        f"{target} needs {format_bytes(needed)} more on its disk, which has {format_bytes(free)} free"
    )
    assert refused.value.hint == "free some space, or name a folder on another disk with -o"


class Noted:
    """The lines that packing adds to its journal, as they are added."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[list[str]] = []
        self.sealed: list[str] = []
        add, seal = Journal.add, Journal.seal

        def added(journal: Journal, *, done: Iterable[str] = (), kept: Iterable[str] = ()) -> None:
            self.done.append(list(done))
            add(journal, done=done, kept=kept)

        def sealed(journal: Journal, file: str, checksums: FileChecksums) -> None:
            self.sealed.append(file)
            seal(journal, file, checksums)

        monkeypatch.setattr(Journal, "add", added)
        monkeypatch.setattr(Journal, "seal", sealed)


@pytest.mark.parametrize(
    ("seconds", "lengths"), [(0.0, [3, *[23] * 5]), (1.0, [3, *[21, 2] * 5]), (3.0, [3, *[7, 7, 7, 2] * 5])]
)
def test_work_is_made_safe_layer_by_layer_and_every_20_seconds(
    seconds: float, lengths: list[int], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that goes on at each look. A layer has 23 matrices and vectors, and there are three outside."""
    noted, clock = Noted(monkeypatch), 1000.0

    def monotonic() -> float:
        nonlocal clock
        clock += seconds
        return clock

    monkeypatch.setattr(write, "time", SimpleNamespace(monotonic=monotonic))
    told: list[tuple[int, int]] = []
    store = packed(checkpoint, tmp_path / "store", progress=lambda *each: told.append(each))
    assert [len(names) for names in noted.done] == lengths
    assert noted.done[0] == ["embedding", "final_norm", "lm_head"]
    first = [name for names in noted.done for name in names if name.startswith("layers.0.")]
    assert {name.split(".")[2] for name in first[:5]} == {"attn_norm", "qkv", "o", "ffn_norm", "router"}
    assert first[-18:] == [f"layers.0.experts.{n}.{name}" for n in range(6) for name in ("gate", "up", "down")]
    assert noted.sealed == [*(f"experts-00{layer}.safetensors" for layer in range(4)), DENSE, "experts-004.safetensors"]
    sizes = [sum(tensor.size for tensor in open_source(checkpoint).checkpoint.tensors.values())]
    assert told[0] == (0, sizes[0]) and told[-1] == (sizes[0], sizes[0]) and told == sorted(told)
    assert len(told) == 1 + 3 + 5 * 23
    assert not verify(store.folder, lambda done, total: None)


def test_every_matrix_has_its_place_in_a_file_and_its_sources(checkpoint: Path, layout: StoreLayout) -> None:
    """Those outside the layers first, as of layer -1; then layer by layer, dense ones before experts."""
    weights = open_source(checkpoint)
    found = jobs(weights, layout)
    assert [job.layer for job in found] == [-1] * 3 + [layer for layer in range(5) for _ in range(23)]
    assert [len(unit) for unit in by_layer(found)] == [3, *[23] * 5]
    places = {place.name: place for place in layout.dense}
    for job in found:
        if job.file == DENSE:
            place = places.pop(job.name)
            assert (job.offset, job.dtype, job.shape) == (place.offset, place.dtype, place.tensor.shape)
            stored = weights.dense(place.tensor)
        else:
            _, layer, _, expert, matrix = job.name.split(".")
            record = layout.records[int(layer)]
            field, start = record.fields[matrix], layout.records_start(int(layer))
            assert job.file == f"experts-00{layer}.safetensors" and int(layer) == job.layer
            assert (job.dtype, job.shape) == ("q4", field.shape)
            assert job.offset == start + int(expert) * record.stride + field.offset
            stored = [weights.expert(int(layer), int(expert), matrix).stored]
        assert [source.stored for source in job.sources] == stored
        assert job.read_size == sum(source.size for source in job.sources) == sum(each.size for each in stored)
    assert not places


def test_what_unfinished_work_must_agree_in(checkpoint: Path, layout: StoreLayout, tmp_path: Path) -> None:
    origin = Origin("five", "a/five", "c0", None, "mark")
    with write.writing(tmp_path / "store", layout, origin, []) as writer:
        assert writer.folder == tmp_path / "store.partial"
        assert (writer.packed, writer.total, writer.todo) == (0, 0, [])
    plan = journal.read_plan(tmp_path / "store.partial")
    assert plan == {
        "schema": 3, "moecli_version": __version__, "dtype": "q4", "compute": "bf16", "roles": dict(layout.roles),
        "origin": {"model": "five", "repo": "a/five", "revision": "c0", "path": None, "fingerprint": "mark"},
    }  # fmt: skip


def test_a_file_is_opened_at_its_size_with_its_header_and_goes_on(
    checkpoint: Path, layout: StoreLayout, tmp_path: Path
) -> None:
    origin = Origin("five", None, None, None, "mark")
    header, size = layout.header(DENSE), layout.sizes[DENSE]
    with write.writing(tmp_path / "store", layout, origin, jobs(open_source(checkpoint), layout)) as writer:
        path = writer.folder / DENSE
        path.write_bytes(b"shorter")
        writer._write(DENSE, len(header) + 5, memoryview(b"first"))
        assert path.read_bytes() == (header + bytes(5) + b"first").ljust(size, b"\0")
        assert list(writer._files) == [DENSE]
        writer.sync()
        assert not writer._files
        writer._write(DENSE, size - 4, memoryview(b"last"))
        assert path.read_bytes() == (header + bytes(5) + b"first").ljust(size - 4, b"\0") + b"last"
        writer.sync()


def test_bytes_that_a_disk_takes_bit_by_bit_are_all_written(layout: StoreLayout, tmp_path: Path) -> None:
    class Slow:
        def __init__(self) -> None:
            self.data, self.place = bytearray(), -1

        def seek(self, place: int) -> None:
            self.place = place

        def write(self, data: memoryview) -> int:
            self.data += data[:3]
            return min(3, len(data))

    with write.writing(tmp_path / "store", layout, Origin("five", None, None, None, "mark"), []) as writer:
        slow = Slow()
        writer._files[DENSE] = slow  # type: ignore[assignment]
        writer._write(DENSE, 77, memoryview(b"ten bytes."))
        writer._files.clear()
    assert (slow.place, slow.data) == (77, b"ten bytes.")


def test_a_manifest_in_json(store: PackedStore, checkpoint: Path) -> None:
    """Its keys are what other programs read."""
    found = json.loads((store.folder / manifest.FILE).read_text(encoding="utf-8"))
    assert list(found) == [
        "schema_version", "moecli_version", "dtype", "compute", "origin", "roles", "files", "records", "digest",
    ]  # fmt: skip
    assert (found["schema_version"], found["moecli_version"], found["dtype"]) == (3, __version__, "q4")
    assert found["origin"]["model"] == checkpoint.name and found["origin"]["path"] == str(checkpoint)
    assert list(found["files"]) == ["config.json", "tokenizer.json", "tokenizer_config.json", *store.layout.sizes]
    for name, size in store.layout.sizes.items():
        entry = found["files"][name]
        assert entry["bytes"] == size == (store.folder / name).stat().st_size
        assert len(entry["sha256"]) == 64 and {len(part) for part in entry["parts"]} == {32}
        assert len(entry["parts"]) == (6 if name.startswith("experts") else len(store.layout.dense))
    assert found["files"]["config.json"]["parts"] == []
    text = (store.folder / manifest.FILE).read_text(encoding="utf-8")
    assert text.endswith("}\n") and text.startswith('{\n "schema_version": 3,\n')
    assert store.bytes == sum(path.stat().st_size for path in store.folder.iterdir() if path.name != manifest.FILE)
    assert {path.name for path in store.folder.iterdir()} == {manifest.FILE, *found["files"]}


def test_a_folder_without_journal_is_not_begun_anew(store: PackedStore, checkpoint: Path, tmp_path: Path) -> None:
    """All but the last step was done; while somebody else is at it that is not done either."""
    target = tmp_path / "store"
    partial = shutil.copytree(store.folder, write.partial_folder(target))
    with journal.locked(partial), pytest.raises(DiskError, match="another moecli is packing"):
        packed(checkpoint, target)
    assert partial.is_dir() and not target.exists()
    packed(checkpoint, target)
    assert contents(target) == contents(store.folder) and not partial.exists()


@pytest.mark.parametrize(
    ("name", "going"),
    [
        ("x-q4", "x-q4.removed"),
        ("x-q4.partial", "x-q4.removed"),
        ("x-q4.removed", "x-q4.removed"),
        ("a.b", "a.b.removed"),
    ],
)
def test_where_a_store_lies_while_it_is_deleted(name: str, going: str, tmp_path: Path) -> None:
    assert leftover(tmp_path / name) == tmp_path / going
    assert is_removed(tmp_path / going) and not is_removed(tmp_path / "x-q4.partial") and not is_removed(tmp_path / "x")
    assert is_partial(tmp_path / name) == (name == "x-q4.partial")


OURS = (
    "manifest.json", "journal", "lock", "config.json", "tokenizer.model", "chat_template.jinja", "dense.safetensors",
    "left-over-a.safetensors", "left-over-a.growing", "model-00001-of-00002.safetensors.incomplete",
)  # fmt: skip


def test_only_what_moecli_wrote_is_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "store"

    def fill() -> None:
        folder.mkdir(exist_ok=True)
        for name in OURS:
            (folder / name).touch()

    strangers: tuple[tuple[str, Any], ...] = (
        ("diary.txt", Path.touch), ("manifest.json.bak", Path.touch), ("safetensors", Path.touch),
        ("folder.safetensors", Path.mkdir), ("link.safetensors", lambda path: path.symlink_to("dense.safetensors")),
    )  # fmt: skip
    for name, make in strangers:
        fill()
        make(folder / name)
        with pytest.raises(DiskError) as refused:
            remove(folder)
        assert refused.value.message == f"{folder} holds '{name}', which moecli did not put there"
        assert refused.value.hint == "move it away first"
        assert {path.name for path in folder.iterdir()} == {*OURS, name}
        (folder / name).rmdir() if (folder / name).is_dir() else (folder / name).unlink()
    fill()
    remove(folder)
    assert not list(tmp_path.iterdir())


def test_what_an_earlier_removal_left_goes_first(tmp_path: Path) -> None:
    folder, going = tmp_path / "store", tmp_path / "store.removed"
    for each in (folder, going):
        each.mkdir()
        (each / "manifest.json").touch()
    remove(folder)
    assert not list(tmp_path.iterdir())
    going.mkdir()
    (going / "diary.txt").touch()
    with pytest.raises(DiskError, match=r"store\.removed holds 'diary.txt'"):
        finish_removal(going)
    (going / "diary.txt").unlink()
    (going / "lock").touch()
    finish_removal(going)
    finish_removal(going)
    assert not list(tmp_path.iterdir())


def test_an_unfinished_store_that_somebody_works_on_is_not_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "store.partial"
    with journal.locked(folder):
        with pytest.raises(DiskError, match=f"another moecli is packing into {folder}"):
            remove(folder)
        assert (folder / "lock").exists()
    remove(folder)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("x.partial", "{} is not finished", "give the same command again: it goes on from there"),
        ("x.removed", "{} was being deleted", "moecli rm {}"),
    ],
)
def test_what_is_no_store_any_more_or_not_yet(name: str, message: str, hint: str, tmp_path: Path) -> None:
    for refusal in (PackedStore.open, lambda folder: verify(folder, lambda done, total: None)):
        with pytest.raises(CheckpointError) as refused:
            refusal(tmp_path / name)
        assert refused.value.message == message.format(tmp_path / name)
        assert refused.value.hint == hint.format(tmp_path / name)


def test_a_removal_is_on_the_disk_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name that says what is going on, before anything goes; and that all of it has gone."""
    seen: list[list[str]] = []
    monkeypatch.setattr(removal, "sync_folder", lambda folder: seen.append([each.name for each in folder.iterdir()]))
    for name in ("store", "store.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "journal").touch()
        remove(tmp_path / name)
        assert seen == [["store.removed"], []]
        seen.clear()
    finish_removal(tmp_path / "store.removed")
    assert not seen
