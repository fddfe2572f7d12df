"""Experts read from a checkpoint's own files: the bits of resident ones, the bytes that were planned, and faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moecli import formats
from moecli.checkpoint.binding import format_of
from moecli.checkpoint.reading import read_slice
from moecli.checkpoint.stored import StoredTensor
from moecli.engine.decoder import Decoder
from moecli.engine.load import open_model
from moecli.engine.weights import checkpoint_weights
from moecli.errors import CheckpointError
from moecli.experts.arena import Arena
from moecli.experts.readers import File
from moecli.experts.resident import write_record
from moecli.experts.unpacked import DirectCheckpoint, UnpackedRecords, unpacked
from moecli.formats import GROUPED
from moecli.formats.plain import torch_dtype
from moecli.library.gguf import unfolded
from moecli.planning.memory import estimate_memory
from moecli.planning.placement import Plan, place
from moecli.store import expert_record
from moecli.store.expert_record import PAGE
from moecli.store.source import open_source
from tests.support.checkpoints import make, prompt, write
from tests.support.encodings import CASES
from tests.support.gguf_files import make as make_gguf
from tests.support.running import greedy, load, score

IDS = prompt(40)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One for all tests here: a GGUF file is known again by the folder that was made of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOECLI_HOME", folder := str(tmp_path_factory.mktemp("home")))
        yield folder


@pytest.fixture(autouse=True)
def at_home(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOECLI_HOME", home)


def odd(folder: Path) -> Path:
    """Its tensors begin at odd places."""
    file = write(make("mixtral"), folder) / "model.safetensors"
    save_file(load_file(file), file, {"format": "pt", "odd": "x" * 3})
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    file.write_bytes((length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :])
    return folder


SOURCES: dict[str, Callable[[Path], Path]] = {
    "mixtral": lambda folder: write(make("mixtral"), folder),
    "odd places": odd,
    "fused": lambda folder: write(make("qwen3_moe"), folder, "fused"),
    "dbrx": lambda folder: write(make("dbrx"), folder),
    "switch": lambda folder: write(make("switch_transformers"), folder),
    "GGUF Q4_0": lambda folder: unfolded(make_gguf("mixtral", folder, "Q4_0").file),
    "GGUF Q4_K, an expert each": lambda folder: unfolded(make_gguf("mixtral", folder, "Q4_K", single=True).file),
    **{name: lambda folder, case=case: case.make().write(folder)[0] for name, case in CASES.items()},
}


@pytest.fixture(scope="module", params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, home: str) -> Path:
    return SOURCES[request.param](tmp_path_factory.mktemp("source") / "model")


def plan_for(folder: Path, dtype: str, slots: int) -> Plan:
    model = open_model(folder)
    need = estimate_memory(model.spec, dtype, 256, unpacked=model.unpacked(dtype))
    plan = place(need, place(need, 0).full_ram - 1)  # too little for these: their buffers are larger than all of them
    return replace(plan, ram=replace(plan.ram, experts=slots, expert_bytes=slots * need.slot_bytes))


def streamed(folder: Path, dtype: str, slots: int) -> Decoder:
    return open_model(folder).decoder(plan_for(folder, dtype, slots))


@pytest.mark.slow
def test_placement_changes_no_bit(source: Path) -> None:
    """In the format of the weights, which is read as it is or decoded, and in one that they are packed to."""
    stored = open_model(source).dtypes[0]
    for dtype in {stored, "q4", "nf4"}:
        resident = load(source, dtype)
        logits, ids = score(resident, IDS), greedy(resident, IDS[:9], 12)
        for slots in (0, 5):
            decoder = streamed(source, dtype, slots)
            assert torch.equal(score(decoder, IDS), logits), dtype
            assert greedy(decoder, IDS[:9], 12) == ids
            statistics = decoder.experts.statistics
            assert statistics.misses and statistics.bytes_read and statistics.read_s


@pytest.mark.slow
def test_large_experts_come_in_pieces(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_record, "PIECE", 2**14)
    monkeypatch.setattr("moecli.formats.blocks._WEIGHTS", 2**12)
    dtype = open_model(source).dtypes[0]
    expected = score(load(source, dtype), IDS)
    assert torch.equal(score(streamed(source, dtype, 2), IDS), expected)


def test_a_record_is_that_of_a_store(source: Path) -> None:
    """Byte for byte, and takes no more reading than was planned."""
    weights = open_source(source)
    for dtype in {weights.packed_dtype, "q8", "int8"}:
        records = UnpackedRecords.of(weights, dtype)
        for layer, record in records.records.items():
            found, expected = Arena(1, record.stride), Arena(1, record.stride)
            before = records.checkpoint.bytes_read
            for matrix, field in record.fields.items():
                records.fill(layer, 1, matrix, 0, found.memory(0)[field.offset : field.offset + field.size])
            write_record(weights, records.records, layer, 1, expected.slot(0))
            assert torch.equal(found.slot(0), expected.slot(0))
            for matrix, field in record.fields.items() if dtype in GROUPED else ():  # whose numbers nobody has seen
                part = weights.expert(layer, 1, matrix)
                numbers = read_slice(weights.checkpoint, part, torch_dtype(format_of(part.stored)))
                packed = found.slot(0)[field.offset : field.offset + field.size]
                assert torch.equal(packed, formats.pack(dtype, numbers))
            assert records.checkpoint.bytes_read - before <= unpacked(weights, dtype).read_bytes


def test_any_bytes_of_a_file_are_had_in_whole_pages(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10000
    (tmp_path / "file").write_bytes(content)
    tensor = StoredTensor("t", "U8", (len(content) - 77,), tmp_path / "file", 77, len(content) - 77)
    checkpoint = DirectCheckpoint({"t": tensor})
    for offset, size in ((0, 1), (4018, 3), (5, 2**21), (len(content) - 177, 100)):
        target = bytearray(size)
        before = checkpoint.bytes_read
        checkpoint.read_into(memoryview(target), tensor, offset)
        assert target == content[77 + offset :][:size]
        assert size <= checkpoint.bytes_read - before <= size + 2 * PAGE * (1 + size // 2**20)
    for width, pitch, pieces in ((7, 100, 1000), (16, 16, 500), (100, 30000, 80)):
        target = bytearray(width * pieces)
        checkpoint.read_strided(memoryview(target), tensor, 33, width, pitch)
        assert target == b"".join(content[110 + n * pitch :][:width] for n in range(pieces))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(make("mixtral", intermediate_size=200), tmp_path / "model")


def test_a_shard_that_is_cut_off_meanwhile_is_explained(folder: Path) -> None:
    decoder = streamed(folder, "bf16", 3)
    file = folder / "model.safetensors"
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"model\.safetensors.* cut short"):
        score(decoder, IDS)


def test_a_disk_that_fails_is_explained_and_the_expert_read_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, read = score(load(folder, "q4"), IDS), File.read
    decoder, left = streamed(folder, "q4", 3), [5]

    def failing(self: File, offset: int, target: memoryview) -> int:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(5, "Input/output error")
        return read(self, offset, target)

    monkeypatch.setattr(File, "read", failing)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read: Input/output error"):
        score(decoder, IDS)
    assert torch.equal(score(decoder, IDS), expected)


def test_a_weight_that_cannot_be_packed_is_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "experts.2." in name and "layers.1" in name)
    tensors[name][3, 5] = torch.inf
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"of expert 2 of layer 1: a weight is infinite"):
        score(streamed(folder, "q4", 0), IDS)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "F16"])
def test_rows_of_a_table_on_disk_are_those_of_the_table(kind: str, tmp_path: Path) -> None:
    weights = open_source(unfolded(make_gguf("mixtral", tmp_path, kind).file))
    here, there = (checkpoint_weights(weights, "q4", "bf16", table_on_disk=on_disk) for on_disk in (False, True))
    assert here.has_table and not there.has_table
    ids = torch.tensor(IDS)
    assert torch.equal(here.embed(ids), there.embed(ids))
