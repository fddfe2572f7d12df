"""Quantised checkpoints are counted in true parameters: real names and shapes, no weights."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest

from moecli.checkpoint.folder import Checkpoint
from moecli.checkpoint.inventory import Inventory, take_inventory
from moecli.checkpoint.prequantized import main_format, true_tensors
from moecli.checkpoint.stored import StoredTensor
from moecli.errors import CheckpointError
from moecli.model import catalog, families, params
from tests.support import headers

pytestmark = pytest.mark.slow

MIXTRAL = 46_702_792_704
GPT_OSS = 20_914_757_184


def opened(folder: Path, alias: str, *shards: headers.Tensors, **changes: object) -> tuple[Inventory, Checkpoint]:
    config = catalog.find(alias).config() | changes
    checkpoint = Checkpoint.open(headers.write(folder, config, *shards))
    spec = families.read_spec(config)
    return take_inventory(checkpoint.tensors, families.find(config), spec, params.count(spec)), checkpoint


def naive(checkpoint: Checkpoint) -> int:
    return sum(prod(tensor.shape) for tensor in checkpoint.tensors.values())


@pytest.mark.parametrize(
    ("packing", "name"),
    [
        ("bnb4", "bitsandbytes 4-bit"),
        ("bnb8", "bitsandbytes 8-bit"),
        ("gptq", "gptq"),
        ("awq", "awq"),
        ("fp8", "fp8"),
        ("compressed", "compressed-tensors 4-bit"),
    ],
)
def test_mixtral_is_mixtral_however_it_is_packed(tmp_path, packing, name):
    tensors = headers.packed(headers.mixtral(), packing)
    inventory, checkpoint = opened(tmp_path, "mixtral", *headers.split(tensors, 3))
    assert inventory.parameters == MIXTRAL and inventory.format == name
    assert not inventory.differences and not inventory.excluded
    assert inventory.bytes == sum(tensor.size for tensor in checkpoint.tensors.values()) < 2 * MIXTRAL
    assert 0 < inventory.read_bytes_per_token < inventory.bytes / 3


def test_the_number_that_tools_show_for_mixtral_in_4_bit_is_not_shown(tmp_path):
    inventory, checkpoint = opened(tmp_path, "mixtral", headers.packed(headers.mixtral(), "bnb4"))
    codes = [
        t for t in checkpoint.tensors.values() if t.name.endswith((".weight", ".absmax")) and "nested" not in t.name
    ]
    assert (
        sum(prod(tensor.shape) for tensor in codes if len(tensor.shape) > 1 or "absmax" in tensor.name)
        == 24_207_966_208
    )
    assert inventory.parameters == MIXTRAL


def test_gpt_oss_as_published(tmp_path):
    inventory, checkpoint = opened(tmp_path, "gpt-oss-20b", *headers.split(headers.gpt_oss(), 3))
    assert naive(checkpoint) == 11_956_805_184
    assert inventory.parameters == GPT_OSS and inventory.bytes == 13_761_264_768
    assert inventory.format == "mxfp4" and not inventory.differences


def test_plain_files_are_checked_name_by_name(tmp_path):
    tensors = headers.plain(headers.mixtral())
    inventory, _ = opened(tmp_path / "right", "mixtral", tensors)
    assert inventory.parameters == MIXTRAL and not inventory.differences
    assert inventory.read_bytes_per_token == 25_497_706_496
    renamed = {name.replace("layers.31.input", "layers.31.other"): value for name, value in tensors.items()}
    inventory, _ = opened(tmp_path / "wrong", "mixtral", renamed)
    assert inventory.parameters == MIXTRAL and "layers.31.input_layernorm" in inventory.differences[0]


def test_what_is_no_part_of_the_model_is_reported_apart(tmp_path):
    extra = {
        "mtp.layers.0.mlp.gate.weight": ("BF16", (8, 4096)),
        "model.visual.blocks.0.attn.qkv.weight": ("BF16", (64, 64)),
        "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (64,)),
        "model.layers.0.ffn.tid2eid": ("I64", (32000, 2)),
    }
    inventory, _ = opened(tmp_path, "mixtral", headers.packed(headers.mixtral(), "fp8") | extra)
    assert inventory.parameters == MIXTRAL
    assert inventory.differences == (
        "the checkpoint holds 'model.layers.0.ffn.tid2eid', which mixtral does not know (and 2 more)",
    )
    assert {each.reason: each.parameters for each in inventory.excluded} == {
        "multi-token prediction": 32768, "vision and audio": 4096, "buffers": 64, "tables of integers": 64000,
    }  # fmt: skip


def test_a_tied_head_in_the_files_is_a_copy(tmp_path):
    tied = opened(tmp_path / "a", "mixtral", headers.plain(headers.mixtral()), tie_word_embeddings=True)[0]
    assert tied.parameters == MIXTRAL - 131_072_000 and not tied.differences
    assert [(each.reason, each.parameters) for each in tied.excluded] == [("copies of the tied table", 131_072_000)]


def test_a_missing_tensor_is_a_difference(tmp_path):
    tensors = headers.packed(headers.mixtral(), "gptq")
    for part in ("qweight", "qzeros", "scales", "g_idx"):
        del tensors[f"model.layers.3.block_sparse_moe.experts.5.w2.{part}"]
    inventory, _ = opened(tmp_path, "mixtral", tensors)
    assert inventory.differences == (
        "the files hold 46,644,072,448 parameters and config.json implies 46,702,792,704: 58,720,256 fewer",
        "tensor 'model.layers.3.block_sparse_moe.experts.5.w2.weight' is missing from the checkpoint",
    )


def stored(name: str, dtype: str, *shape: int) -> dict[str, StoredTensor]:
    size = prod(shape) * headers.ITEM_SIZES[dtype]
    return {name: StoredTensor(name, dtype, shape, Path("x"), 0, size)}


@pytest.mark.parametrize(("bits", "rows"), [(2, 256), (3, 384), (4, 512), (8, 1024)])
def test_gptq_bits_are_told_by_the_zero_points(bits, rows):
    header = stored("a.qweight", "I32", rows, 64) | stored("a.qzeros", "I32", 32, 64 * bits // 32)
    header |= stored("a.scales", "F16", 32, 64)
    (tensor,) = true_tensors(header)
    assert (tensor.name, tensor.numbers) == ("a.weight", 4096 * 64)


def test_codes_without_their_scales_are_counted_as_they_lie():
    (tensor,) = true_tensors(stored("a.weight", "U8", 8, 1))
    assert (tensor.numbers, tensor.format) == (8, "U8")


def test_scales_that_cannot_be_are_refused():
    header = stored("a.qweight", "I32", 8, 8) | stored("a.scales", "F16", 1, 8)
    with pytest.raises(CheckpointError, match="no use"):
        true_tensors(header | stored("a.qzeros", "I32", 1, 0))
    with pytest.raises(CheckpointError, match="does not agree"):
        true_tensors(header | stored("a.qzeros", "I32", 1, 3))


def test_no_tensors_at_all():
    assert main_format(true_tensors({})) == "empty"


def test_the_layer_after_the_last_is_for_multi_token_prediction():
    config = catalog.find("deepseek-v3").config()
    spec = families.read_spec(config)
    header = stored("model.layers.60.eh_proj.weight", "BF16", 4, 4) | stored(
        "model.layers.61.eh_proj.weight", "BF16", 5
    )
    inventory = take_inventory(header, families.find(config), spec, params.count(spec))
    assert inventory.parameters == 16
    assert [(each.reason, each.parameters) for each in inventory.excluded] == [("multi-token prediction", 5)]


def test_a_strangers_tensor_name_cannot_steer_the_terminal(tmp_path):
    tensors = headers.plain(headers.mixtral()) | {"\x1b[31mred": ("BF16", (1,))}
    inventory, _ = opened(tmp_path, "mixtral", tensors)
    assert len(inventory.differences) == 2 and all(text.isprintable() for text in inventory.differences)
