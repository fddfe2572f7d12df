"""Damage is found and named, and nothing that a hostile folder claims is believed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest

from moecli.errors import CheckpointError, ConfigError
from moecli.library import stores
from moecli.store import manifest
from moecli.store.packed import PackedStore
from moecli.store.source import open_source
from moecli.store.verify import compare, verify
from tests.support.processes import in_child
from tests.support.stores import packed


def unwatched(done: int, total: int) -> None:
    """Nobody watches."""


@pytest.fixture
def copy(store: PackedStore, tmp_path: Path) -> Path:
    return shutil.copytree(store.folder, tmp_path / "copy")


def flip(path: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def problems(folder: Path) -> list[str]:
    return [str(problem) for problem in verify(folder, unwatched)]


def test_a_whole_store_has_no_problems(store, checkpoint):
    told: list[tuple[int, int]] = []
    assert verify(store.folder, lambda *each: told.append(each)) == []
    assert told[-1] == (store.bytes, store.bytes)
    assert compare(store, open_source(checkpoint), unwatched) == []


@pytest.mark.parametrize("where", [0, 5000, -1])
def test_a_flipped_bit_in_a_record_names_the_expert(where, store, copy):
    record = store.record(3)
    flip(copy / "experts-003.safetensors", store.experts(3).offset + 4 * record.stride + where % record.stride)
    assert problems(copy) == ["experts-003.safetensors: expert 4 of layer 3 is damaged"]
    assert PackedStore.open(copy).dtype == "q4"  # what lies in the records is for verify alone


def test_a_flipped_bit_in_a_dense_tensor_names_it(store, copy):
    found = store.checkpoint["layers.2.qkv"]
    flip(copy / "dense.safetensors", found.offset + found.size - 1, bit=7)
    assert problems(copy) == ["dense.safetensors: tensor 'layers.2.qkv' is damaged"]


def test_a_flipped_bit_in_a_header_is_refused(copy):
    flip(copy / "experts-001.safetensors", 40)
    with pytest.raises(CheckpointError):
        PackedStore.open(copy)
    assert problems(copy) == ["experts-001.safetensors: is damaged outside its tensors"]


def test_a_flipped_bit_in_a_small_file_is_found(copy):
    flip(copy / "tokenizer.json", 100)
    assert problems(copy) == ["tokenizer.json: is damaged"]
    flip(copy / "config.json", -20)
    with pytest.raises((CheckpointError, ConfigError)):
        PackedStore.open(copy)
    assert any("config.json" in each for each in problems(copy))


def test_a_flipped_bit_in_the_manifest_is_refused_wherever_it_matters(store, copy):
    original = (copy / manifest.FILE).read_bytes()
    places, refused = random.Random(1), 0
    for _ in range(60):
        flip(copy / manifest.FILE, places.randrange(len(original)), places.randrange(8))
        try:
            assert manifest.read(copy) == store.manifest  # a blank that became another blank
        except CheckpointError as error:
            assert "copy" in error.message
            refused += 1
        (copy / manifest.FILE).write_bytes(original)
    assert refused > 50


@pytest.mark.parametrize("name", ["dense.safetensors", "experts-004.safetensors", "tokenizer.json"])
def test_a_file_that_is_cut_short_is_refused(name, store, copy):
    size = (copy / name).stat().st_size
    with (copy / name).open("r+b") as file:
        file.truncate(size - 100)
    with pytest.raises(CheckpointError, match=rf"its {name} has {size - 100} bytes instead of {size}") as refused:
        PackedStore.open(copy)
    assert "moecli rm" in refused.value.hint
    assert f"{name}: has {size - 100} bytes instead of {size}" in problems(copy)
    if name.startswith("experts"):
        assert f"{name}: expert 5 of layer 4 is damaged" in problems(copy)


def test_a_missing_file_is_named(copy):
    (copy / "experts-002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"its experts-002\.safetensors is missing"):
        PackedStore.open(copy)
    assert problems(copy) == ["experts-002.safetensors: cannot be read: No such file or directory"]


def test_compare_names_what_the_source_does_not_give(store, copy, checkpoint):
    flip(copy / "experts-003.safetensors", store.experts(3).offset + store.record(3).stride)
    flip(copy / "dense.safetensors", store.checkpoint["final_norm"].offset)
    found = [str(each) for each in compare(PackedStore.open(copy), open_source(checkpoint), unwatched)]
    assert found == [
        "dense.safetensors: final_norm is not what the source gives",
        "experts-003.safetensors: layers.3.experts.1.gate is not what the source gives",
    ]


def test_compare_refuses_another_model(store):
    import moecli

    with pytest.raises(CheckpointError, match="not packed from this checkpoint"):
        compare(store, open_source(Path(moecli.__file__).parent / "tiny"), unwatched)


def rewrite(folder: Path, change) -> None:
    """A manifest that somebody changed and gave a digest that fits."""
    document = json.loads((folder / manifest.FILE).read_text())
    document.pop("digest")
    change(document)
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / manifest.FILE).write_text(json.dumps(document | {"digest": digest}))


def rename(document, old, new):
    document["files"][new] = document["files"].pop(old)


LIES = {
    "a path": lambda d: rename(d, "tokenizer.json", "../../etc/passwd"),
    "an absolute path": lambda d: rename(d, "tokenizer.json", "/etc/passwd"),
    "a nul": lambda d: rename(d, "tokenizer.json", "to\0kenizer.json"),
    "a folder": lambda d: rename(d, "tokenizer.json", ".."),
    "an endless name": lambda d: rename(d, "tokenizer.json", "x" * 5000),
    "no files": lambda d: d.update(files={}),
    "no config": lambda d: d["files"].pop("config.json"),
    "files a list": lambda d: d.update(files=[1, 2]),
    "no dense file": lambda d: d["files"].pop("dense.safetensors"),
    "a huge size": lambda d: d["files"]["dense.safetensors"].update(bytes=2**80),
    "a negative size": lambda d: d["files"]["dense.safetensors"].update(bytes=-1),
    "a size in words": lambda d: d["files"]["dense.safetensors"].update(bytes="many"),
    "true as a size": lambda d: d["files"]["dense.safetensors"].update(bytes=True),
    "parts left out": lambda d: d["files"]["dense.safetensors"].update(parts=[]),
    "parts a number": lambda d: d["files"]["dense.safetensors"].update(parts=7),
    "an unknown format": lambda d: d.update(dtype="q2"),
    "a format in words": lambda d: d.update(dtype=["q4"]),
    "another format": lambda d: d.update(dtype="q8"),
    "a quantised norm": lambda d: d["roles"].update(attn_norm="q4"),
    "a role left out": lambda d: d["roles"].pop("qkv"),
    "a role more": lambda d: d["roles"].update(soul="bf16"),
    "roles null": lambda d: d.update(roles=None),
    "computed in q4": lambda d: d.update(compute="q4"),
    "another stride": lambda d: d["records"]["0"].update(stride=1),
    "a million experts": lambda d: d["records"]["0"].update(count=10**6),
    "records a text": lambda d: d.update(records="none"),
    "no origin": lambda d: d.pop("origin"),
    "an origin of numbers": lambda d: d["origin"].update(model=7),
    "schema null": lambda d: d.update(schema_version=None),
    "schema true": lambda d: d.update(schema_version=True),
    "nothing": lambda d: d.clear(),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_manifest_that_lies_is_one_clear_error(lie, copy):
    rewrite(copy, lie)
    with pytest.raises(CheckpointError) as refused:
        PackedStore.open(copy)
    assert len(refused.value.message) < 400 and refused.value.hint


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"schema_version": NaN}', b"\xff\xfe"])
def test_a_manifest_that_is_none_is_one_clear_error(text, copy):
    (copy / manifest.FILE).write_bytes(text)
    with pytest.raises(CheckpointError, match="damaged"):
        PackedStore.open(copy)


def test_a_store_of_a_newer_moecli_says_so(copy):
    rewrite(copy, lambda d: d.update(schema_version=manifest.SCHEMA + 1))
    with pytest.raises(CheckpointError, match="newer moecli") as refused:
        PackedStore.open(copy)
    assert refused.value.hint == "upgrade moecli"


def test_a_store_of_an_older_moecli_names_the_commands_that_make_it_anew(copy):
    rewrite(copy, lambda d: d.update(schema_version=1))
    with pytest.raises(CheckpointError, match="older moecli") as refused:
        PackedStore.open(copy)
    origin = json.loads((copy / manifest.FILE).read_text())["origin"]
    assert refused.value.hint == f"moecli rm {copy}, then moecli pack {origin['model']} --dtype q4 again"
    listed = stores.describe(copy)  # what the hint tells to delete is known for a store, wherever it lies
    assert listed is not None and (listed.dtype, listed.complete, listed.damaged) == ("q4", True, False)
    assert stores.remove(copy) == listed.bytes and not copy.exists()


def test_a_config_that_was_swapped_is_refused(copy):
    config = json.loads((copy / "config.json").read_text()) | {"num_hidden_layers": 50_000_000}
    (copy / "config.json").write_text(json.dumps(config))
    data = (copy / "config.json").read_bytes()
    sums = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "parts": []}
    rewrite(copy, lambda d: d["files"].update({"config.json": sums}))
    with pytest.raises((CheckpointError, ConfigError)):
        PackedStore.open(copy)


def test_what_is_being_packed_is_never_opened_as_a_model(checkpoint, tmp_path):
    seen: list[object] = []

    def look(done: int, total: int) -> None:
        seen.append(in_child(lambda: PackedStore.open(tmp_path / "store")))

    packed(checkpoint, tmp_path / "store", progress=lambda *each: look(*each) if len(seen) < 5 else None)
    assert len(seen) == 5 and all("is not a packed model" in str(each) for each in seen)


def test_every_problem_is_told_with_its_file_and_all_bytes_are_counted(store, copy):
    """In the order of the manifest; what is missing or cannot be read is not counted."""
    stride, start = store.record(2).stride, store.experts(2).offset
    for expert in (1, 5):
        flip(copy / "experts-002.safetensors", start + expert * stride)
    flip(copy / "experts-001.safetensors", 9)
    (copy / "experts-003.safetensors").unlink()
    with (copy / "tokenizer.json").open("ab") as file:
        file.write(b"more")
    told: list[tuple[int, int]] = []
    found = verify(copy, lambda *each: told.append(each))
    sizes = {name: entry.bytes for name, entry in store.manifest.files.items()}
    longer = sizes["tokenizer.json"] + 4
    assert [(each.file, each.what) for each in found] == [
        ("tokenizer.json", f"has {longer} bytes instead of {longer - 4}"),
        ("experts-001.safetensors", "is damaged outside its tensors"),
        ("experts-002.safetensors", "expert 1 of layer 2 is damaged"),
        ("experts-002.safetensors", "expert 5 of layer 2 is damaged"),
        ("experts-003.safetensors", "cannot be read: No such file or directory"),
    ]
    assert [each.hint for each in found[:4]] == [None] * 4
    assert str(found[0]) == f"tokenizer.json: {found[0].what}"
    assert told[-1] == (sum(sizes.values()) + 4 - sizes["experts-003.safetensors"], sum(sizes.values()))
    assert told == sorted(told) and {total for _, total in told} == {store.bytes}


def test_a_longer_file_names_no_part_that_is_whole(store, copy):
    for name in ("dense.safetensors", "experts-000.safetensors"):
        with (copy / name).open("ab") as file:
            file.write(b"x")
        size = store.manifest.files[name].bytes
        assert problems(copy) == [f"{name}: has {size + 1} bytes instead of {size}"]
        os.truncate(copy / name, size)
    assert problems(copy) == []


def test_compare_reads_all_of_the_source_and_counts_it(store, checkpoint):
    told: list[tuple[int, int]] = []
    weights = open_source(checkpoint)
    assert compare(store, weights, lambda *each: told.append(each)) == []
    total = sum(tensor.size for tensor in weights.checkpoint.tensors.values())
    assert told[-1] == (total, total) and told == sorted(told) and told[0][0] > 0
    assert len(told) == 3 + 5 * 23  # a strip for each matrix and vector


def test_a_store_that_is_not_what_config_json_implies_is_named_by_the_file(store, copy):
    def refused(change) -> str:
        shutil.copy(store.folder / manifest.FILE, copy)
        rewrite(copy, change)
        with pytest.raises(CheckpointError) as found:
            PackedStore.open(copy)
        assert found.value.hint == f"moecli rm {copy}, and pack it again"
        return found.value.message.removeprefix(f"the packed model {copy} is damaged: its ")

    def resized(document):
        document["files"]["experts-002.safetensors"]["bytes"] += 1

    def parted(document):
        document["files"]["experts-002.safetensors"]["parts"].pop()

    def more(document):
        document["files"].update(dict.fromkeys(("z.txt", "y" * 90), document["files"]["config.json"]))

    unlike = "manifest.json does not describe experts-002.safetensors as config.json implies it"
    assert refused(resized) == refused(parted) == unlike
    assert refused(lambda d: d["files"].pop("experts-002.safetensors")) == unlike
    assert refused(more) == f"manifest.json names a file of no use, '{'y' * 80}'"
    assert refused(lambda d: d["records"]["3"].update(stride=8)) == "manifest.json describes records of another layout"
    for change in ({"dtype": "q2"}, {"compute": "q4"}, {"compute": "fp16"}):
        unknown = "manifest.json names formats that moecli does not give to its tensors"
        assert refused(lambda d, change=change: d.update(change)) == unknown
    assert refused(lambda d: d["files"].pop("config.json")) == "config.json does not match its checksum"
    assert refused(lambda d: d.pop("roles")) == "manifest.json does not describe a store"
    for kind in (None, True, "2", 2.0):
        assert (
            refused(lambda d, kind=kind: d.update(schema_version=kind))
            == "manifest.json does not match its own checksum"
        )


def test_a_head_of_its_own_is_known_by_its_role(store):
    """Whatever config.json says: some models tie it there and store another."""
    assert "lm_head" in store.manifest.roles and not store.spec.tied_embeddings
    assert store.record(2) is store.layout.records[2] and store.name == store.folder.name
    lies, dtype = store.dense(next(each.tensor for each in store.layout.dense if each.name == "lm_head"))
    assert (lies.name, dtype, lies.dtype) == ("lm_head", "q4", "U8")
    assert (store.dtype, store.compute, store.source) == ("q4", "bf16", store.manifest.origin)
    records = store.experts(4)
    assert (records.path.name, records.offset, records.shape) == (
        "experts-004.safetensors", 4096, (6, store.record(4).stride)
    )  # fmt: skip


def test_a_file_that_cannot_be_looked_at_is_not_called_missing(copy):
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer.json").symlink_to("tokenizer.json")
    with pytest.raises(CheckpointError, match=f"{copy / 'tokenizer.json'} cannot be read: Too many levels") as refused:
        PackedStore.open(copy)
    assert "damaged" not in refused.value.message
    assert problems(copy)[0].startswith("tokenizer.json: cannot be read: Too many levels")


def test_a_manifest_that_cannot_be_read_says_so(copy):
    (copy / manifest.FILE).unlink()
    with pytest.raises(CheckpointError, match=f"^{copy} is not a packed model: it holds no manifest.json$"):
        manifest.read(copy)
    (copy / manifest.FILE).mkdir()
    with pytest.raises(CheckpointError, match=r"manifest.json cannot be read: Is a directory"):
        manifest.read(copy)
