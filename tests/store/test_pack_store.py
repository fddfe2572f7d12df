"""A packed store holds exactly what `formats.pack` makes of the checkpoint's tensors, and opens without it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from moecli import formats
from moecli.checkpoint.binding import Weights
from moecli.checkpoint.reading import stored_slice
from moecli.errors import CheckpointError, DiskError
from moecli.formats.plain import torch_dtype
from moecli.model.spec import Part
from moecli.model.tensors import dense_tensors
from moecli.store.expert_record import PAGE, dense_dtype
from moecli.store.packed import PackedStore
from moecli.store.source import open_source
from tests.support import checkpoints
from tests.support.stores import contents, packed

MODELS = [
    ("mixtral", "published"), ("dbrx", "published"), ("deepseek_v2", "published"), ("qwen3_moe", "fused"),
    ("granitemoe", "published"), ("deepseek_v3", "fused"), ("mistral", "published"),
    ("switch_transformers", "published"),
]  # fmt: skip


@pytest.fixture(scope="module", params=MODELS, ids=lambda each: "-".join(each))
def source(request, tmp_path_factory) -> Path:
    family, layout = request.param
    return checkpoints.write(checkpoints.make(family), tmp_path_factory.mktemp("source") / family, layout)


def stored_bytes(store: PackedStore, where, offset: int = 0, size: int | None = None) -> torch.Tensor:
    data = bytearray(where.size if size is None else size)
    store.checkpoint.read_into(memoryview(data), where, offset)
    return torch.frombuffer(data, dtype=torch.uint8)


def stacked(weights: Weights, tensor) -> torch.Tensor:
    """A dense tensor as the safetensors library reads it."""
    parts = [load_file(part.path)[part.name] for part in weights.dense(tensor)]
    return torch.cat(parts).view(tensor.shape)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["q4", "nf4", "bf16"])
def test_a_store_is_its_checkpoint_packed(source, dtype, tmp_path):
    store, weights = packed(source, tmp_path / "store", dtype), open_source(source)
    for tensor in dense_tensors(weights.spec):
        where, found = store.dense(tensor)
        kept = tensor.part is Part.ROUTER
        assert found == ("fp32" if kept else dense_dtype(tensor, dtype, "bf16"))
        expected = formats.pack(found, stacked(weights, tensor))
        assert torch.equal(stored_bytes(store, where), expected), tensor.role
    for layer, mixture in weights.spec.mixtures:
        record, records = store.record(layer), store.experts(layer)
        assert records.offset % PAGE == 0 and records.shape == (mixture.router.experts, record.stride)
        for expert in range(mixture.router.experts):
            for matrix in record.fields:
                field = record.fields[matrix]
                original = stored_slice(weights.checkpoint, weights.expert(layer, expert, matrix))
                found = stored_bytes(store, records, expert * record.stride + field.offset, field.size)
                assert torch.equal(found, formats.pack(dtype, original)), (layer, expert, matrix)


def test_the_safetensors_library_opens_every_file(store):
    for file in store.folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                assert opened.get_tensor(name).numel()
    experts = load_file(store.folder / "experts-003.safetensors")
    assert list(experts) == ["experts"] and experts["experts"].shape == (6, store.record(3).stride)


def test_large_matrices_start_on_a_cache_line(store):
    for tensor in dense_tensors(store.spec):
        where, dtype = store.dense(tensor)
        assert where.offset % (64 if len(tensor.shape) == 2 else formats.bytes_for(dtype, (1,))) == 0


def test_a_store_needs_nothing_of_its_source(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "source")
    packed(tmp_path / "source", tmp_path / "store")
    shutil.rmtree(tmp_path / "source")
    moved = (tmp_path / "store").rename(tmp_path / "elsewhere")
    store = PackedStore.open(moved)
    assert (store.name, store.dtype, store.compute) == ("elsewhere", "q4", "bf16")
    assert {file.name for file in moved.iterdir()} >= {"tokenizer.json", "config.json", "manifest.json"}


@pytest.mark.parametrize("dtype", ["q4", "q8", "fp16", "bf16", "fp32"])
def test_these_formats_may_be_packed_rows_by_rows(dtype):
    """What the strips of large matrices rely on."""
    matrix = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    parts = torch.cat([formats.pack(dtype, matrix[:64]), formats.pack(dtype, matrix[64:128])])
    whole = formats.pack(dtype, matrix)
    assert torch.equal(torch.cat([parts, formats.pack(dtype, matrix[128:])]), whole)
    assert parts.numel() == formats.bytes_for(dtype, (128, 300))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["q4", "q3", "q8", "bf16", "int8", "nf4"])
def test_strips_do_not_show(dtype, checkpoint, tmp_path, monkeypatch):
    whole = contents(packed(checkpoint, tmp_path / "whole", dtype).folder)
    monkeypatch.setattr("moecli.store.convert._STRIP", 64 * 128)
    assert contents(packed(checkpoint, tmp_path / "strips", dtype).folder) == whole


def test_routers_keep_their_precision_and_mixed_parts_lose_nothing(checkpoint, tmp_path):
    """A router and one of three stacked projections in float32."""
    source = tmp_path / "mixed"
    shutil.copytree(checkpoint, source)
    tensors = load_file(source / "model-000.safetensors")
    for name in ("model.layers.0.block_sparse_moe.gate.weight", "model.layers.0.self_attn.k_proj.weight"):
        tensors[name] = torch.randn(tensors[name].shape)
    save_file(tensors, source / "model-000.safetensors")
    store, weights = packed(source, tmp_path / "store"), open_source(source)
    found = {tensor.role: tensor for tensor in dense_tensors(weights.spec) if tensor.layer == 0}
    where, dtype = store.dense(found["router"])
    assert dtype == "fp32" and torch.equal(
        stored_bytes(store, where).view(torch.float32).view(6, 128),
        tensors["model.layers.0.block_sparse_moe.gate.weight"],
    )
    where, dtype = store.dense(found["qkv"])
    parts = [load_file(part.path)[part.name].to(torch_dtype("fp32")) for part in weights.dense(found["qkv"])]
    assert dtype == "q4" and torch.equal(stored_bytes(store, where), formats.pack("q4", torch.cat(parts)))


def test_the_same_again_is_done_at_once(checkpoint, store, tmp_path):
    target = tmp_path / "store"
    shutil.copytree(store.folder, target)
    calls = []
    again = packed(checkpoint, target, progress=lambda done, total: calls.append(done))
    assert again.folder == target and not calls


def test_something_else_is_never_overwritten(checkpoint, store, tmp_path):
    target = tmp_path / "store"
    shutil.copytree(store.folder, target)
    with pytest.raises(DiskError, match="five-layers in q4") as refused:
        packed(checkpoint, target, "q8")
    assert "moecli rm" in refused.value.hint
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    with pytest.raises(DiskError, match="not a packed model"):
        packed(checkpoint, tmp_path / "mine")
    assert contents(tmp_path / "mine") == {"diary.txt": b"dear diary"}


def test_an_empty_folder_may_become_the_store(checkpoint, store, tmp_path):
    (tmp_path / "empty").mkdir()
    assert contents(packed(checkpoint, tmp_path / "empty").folder) == contents(store.folder)


def test_a_store_is_not_packed_again(store):
    with pytest.raises(CheckpointError, match="packed already, to q4"):
        open_source(store.folder)


def test_a_weight_that_no_format_holds_is_named(checkpoint, tmp_path):
    source = tmp_path / "infinite"
    shutil.copytree(checkpoint, source)
    tensors = load_file(source / "model-002.safetensors")
    tensors["model.layers.2.block_sparse_moe.experts.4.w3.weight"][5, 7] = torch.inf
    save_file(tensors, source / "model-002.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.2\.experts\.4\.up cannot be packed"):
        packed(source, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("same", [True, False])
def test_a_head_that_config_json_ties_and_the_weights_do_not(same: bool, checkpoint: Path, tmp_path: Path) -> None:
    """The weights are right; a copy of the table is stored once."""
    source = shutil.copytree(checkpoint, tmp_path / "tied")
    config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": True}
    (source / "config.json").write_text(json.dumps(config))
    if same:
        tensors = load_file(source / "model-outside.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, source / "model-outside.safetensors")
    store = PackedStore.open(packed(source, tmp_path / "store").folder)
    assert store.spec.tied_embeddings == same and ("lm_head" in store.layout.roles) != same
    assert any(place.name == "lm_head" for place in store.layout.dense) != same
