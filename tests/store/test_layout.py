"""Where every byte of a store lies, in numbers: other moecli have written stores so, and other programs read them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from moecli.model import families
from moecli.model.spec import ModelSpec, Part
from moecli.model.tensors import Tensor, dense_tensors
from moecli.store import manifest
from moecli.store.expert_record import Field, Record, compute_dtype, dense_dtype, slots_per_layer, staging_size
from moecli.store.layout import (
    DENSE,
    StoreLayout,
    are_possible,
    experts_file,
    safetensors_header,
    tensor_name,
)
from moecli.store.packed import describe_records
from tests.support.specs import spec_of

QWEN = {
    "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "hidden_size": 40, "intermediate_size": 96,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 20, "num_attention_heads": 2,
    "num_key_value_heads": 1, "num_experts": 3, "num_experts_per_tok": 2, "num_hidden_layers": 2, "vocab_size": 50,
    "max_position_embeddings": 512, "dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip


def layout_of(spec: ModelSpec, dtype: str, **roles: str) -> StoreLayout:
    usual = {tensor.role: dense_dtype(tensor, dtype) for tensor in dense_tensors(spec)} | {"experts": dtype}
    return StoreLayout(spec, dtype, "bf16", usual | roles)


@pytest.fixture
def small() -> StoreLayout:
    """Two layers of three small experts, with routers in float32."""
    return layout_of(families.read_spec(QWEN), "q8", router="fp32", shared_gate="fp32")


def test_dense_tensors_by_hand(small: StoreLayout) -> None:
    found = [(place.name, place.dtype, place.size) for place in small.dense]
    sizes = {place.name: (place.dtype, place.size) for place in small.dense}
    assert sizes["embedding"] == ("bf16", 50 * 40 * 2) and sizes["layers.1.router"] == ("fp32", 3 * 40 * 4)
    assert sizes["layers.0.qkv_bias"] == ("bf16", 80 * 2) and sizes["layers.1.shared_gate"] == ("fp32", 160)
    aligned = [each for each in found if each[2] % 64 == 0]
    assert found[: len(aligned)] == aligned  # kernels like their matrices on a cache line
    width = {"fp32": 4, "bf16": 2, "q8": 1}
    for part in (found[: len(aligned)], found[len(aligned) :]):
        assert [width[dtype] for _, dtype, _ in part] == sorted((width[dtype] for _, dtype, _ in part), reverse=True)
    forward = [tensor_name(tensor) for tensor in dense_tensors(small.spec)]
    for dtype in width:
        for part in (found[: len(aligned)], found[len(aligned) :]):
            names = [name for name, each, _ in part if each == dtype]
            assert names == [name for name in forward if name in names]
    end = len(small.header(DENSE))
    for place in small.dense:
        assert place.offset == end
        end += place.size
    assert small.sizes[DENSE] == end


def test_the_header_of_dense_tensors_by_hand(small: StoreLayout) -> None:
    header = small.header(DENSE)
    assert len(header) == 4096 == 8 + int.from_bytes(header[:8], "little") and header[:8] == b"\xf8\x0f" + bytes(6)
    text = header[8:].rstrip(b" ")
    assert text.startswith(b'{"__metadata__":{"format":"moecli"},"layers.0.qkv":{"dtype":"U8","shape":[5440],')
    assert b" " not in text
    described = json.loads(text)
    assert described.pop("__metadata__") == {"format": "moecli"}
    assert list(described) == [place.name for place in small.dense]
    codes = {"fp32": "F32", "bf16": "BF16", "q8": "U8"}
    for place in small.dense:
        shape = [place.size] if place.dtype == "q8" else list(place.tensor.shape)
        assert described[place.name] == {
            "dtype": codes[place.dtype], "shape": shape,
            "data_offsets": [place.offset - 4096, place.offset - 4096 + place.size],
        }  # fmt: skip


def test_records_by_hand(small: StoreLayout) -> None:
    """Gate and up [24, 40], down [40, 24]: in q8 blocks of 32 weights with a scale, rows in tiles of 16."""
    fields = {"gate": Field((24, 40), 0, 2176), "up": Field((24, 40), 2176, 2176), "down": Field((40, 24), 4352, 1632)}
    record = Record("q8", fields, 5984)
    assert small.records == {0: record, 1: record} and small.experts == {0: 3, 1: 3}
    assert record.stride == staging_size(record) == 8192 and record.pieces()[0].spans == ((0, 5984),)
    file = experts_file(1)
    assert file == "experts-001.safetensors" and experts_file(12) == "experts-012.safetensors"
    assert small.layer_of(file) == 1 and small.layer_of("experts-1234.safetensors") == 1234
    header = small.header(file)
    assert json.loads(header[8:]) == {
        "__metadata__": {"format": "moecli"},
        "experts": {"dtype": "U8", "shape": [3, 8192], "data_offsets": [0, 3 * 8192]},
    }
    assert small.records_start(1) == len(header) == 4096
    assert list(small.sizes.items())[1:] == [(experts_file(layer), 4096 + 3 * 8192) for layer in (0, 1)]
    assert small.parts(file) == [(f"expert {n} of layer 1", 4096 + n * 8192, 8192) for n in range(3)]
    assert small.parts(DENSE) == [(f"tensor '{place.name}'", place.offset, place.size) for place in small.dense]
    assert describe_records(small)["1"] == {
        "count": 3, "dtype": "q8", "stride": 8192,
        "fields": {
            "gate": {"shape": [24, 40], "offset": 0, "bytes": 2176},
            "up": {"shape": [24, 40], "offset": 2176, "bytes": 2176},
            "down": {"shape": [40, 24], "offset": 4352, "bytes": 1632},
        },
    }  # fmt: skip
    assert list(describe_records(small)) == ["0", "1"]


@pytest.mark.parametrize("length", range(4040, 4060))
def test_data_begins_on_a_page_however_long_the_header_is(length: int) -> None:
    name = "n" * (length - len(json.dumps({"__metadata__": {"format": "moecli"}, "": 0}, separators=(",", ":"))))
    header = safetensors_header([(name, "F32", (2, 3)), ("b", "U8", (5,))])
    text = header[8:].rstrip(b" ")
    assert len(header) == -(-(8 + len(text)) // 4096) * 4096 and len(header) in (4096, 8192)
    assert int.from_bytes(header[:8], "little") == len(header) - 8
    described = json.loads(text)
    assert described[name]["data_offsets"] == [0, 24] and described["b"]["data_offsets"] == [24, 29]


@pytest.mark.parametrize(
    ("dtype", "stored", "compute"),
    [
        ("fp32", "bf16", "fp32"), ("bf16", "fp16", "bf16"), ("fp16", "bf16", "fp16"), ("q4", "bf16", "bf16"),
        ("q4", "fp16", "fp16"), ("nf4", "fp32", "bf16"), ("int8", "fp16", "fp16"), ("q8", "fp32", "bf16"),
    ],
)  # fmt: skip
def test_what_is_computed_in(dtype: str, stored: str, compute: str) -> None:
    assert compute_dtype(dtype, stored) == compute


def test_sensitive_tensors_are_not_quantised() -> None:
    def one(role: str, part: Part, *shape: int) -> Tensor:
        return Tensor(role, shape or (64, 64), part, 0)

    large = [one("qkv", Part.ATTENTION), one("q_b", Part.ATTENTION), one("lm_head", Part.LM_HEAD),
             one("shared_down", Part.SHARED_EXPERTS), one("gate_up", Part.DENSE_FFN)]  # fmt: skip
    precise = [
        *(one(role, Part.ATTENTION) for role in ("q_a", "kv_a", "kv_b")), one("qkv_bias", Part.ATTENTION, 64),
        one("router", Part.ROUTER), one("embedding", Part.EMBEDDING), one("final_norm", Part.NORMS, 64),
        one("x", Part.MIXER_OTHER), one("x", Part.OTHER), one("conv", Part.ATTENTION, 4, 4, 4),
    ]  # fmt: skip
    for dtype in ("q3", "q4", "q8", "nf4", "int8"):
        assert {dense_dtype(tensor, dtype) for tensor in large} == {dtype}
        assert {dense_dtype(tensor, dtype) for tensor in precise} == {"bf16"}
        assert {dense_dtype(tensor, dtype, "fp16") for tensor in precise} == {"fp16"}
    for dtype in ("fp32", "bf16", "fp16"):
        assert {dense_dtype(tensor, dtype, "fp16") for tensor in large + precise} == {dtype}


def test_formats_that_a_store_cannot_have(small: StoreLayout) -> None:
    spec, roles = small.spec, dict(small.roles)
    assert are_possible(spec, "q8", "bf16", roles)
    for plain in ("fp32", "fp16", "bf16"):
        assert are_possible(spec, "q8", "bf16", roles | {"router": plain})
    for change in (
        {"router": "q8"}, {"experts": "q4"}, {"experts": "bf16"}, {"qkv": "bf16"}, {"qkv": "q4"},
        {"attn_norm": "fp16"}, {"more": "bf16"},
    ):  # fmt: skip
        assert not are_possible(spec, "q8", "bf16", roles | change)
    assert not are_possible(spec, "q8", "fp16", roles) and not are_possible(spec, "q4", "bf16", roles)
    for role in roles:
        assert not are_possible(spec, "q8", "bf16", {name: each for name, each in roles.items() if name != role})
    dense = spec_of("llama-2-70b")
    usual = {tensor.role: dense_dtype(tensor, "q4") for tensor in dense_tensors(dense)}
    assert are_possible(dense, "q4", "bf16", usual)
    assert not are_possible(dense, "q4", "bf16", usual | {"experts": "q4"})


@pytest.mark.parametrize(
    ("slots", "given"),
    [(0, [0, 0]), (1, [1, 0]), (2, [1, 1]), (3, [2, 1]), (5, [3, 2]), (6, [3, 3]), (7, [3, 3]), (100, [3, 3])],
)
def test_slots_are_dealt_in_turn(slots: int, given: list[int], small: StoreLayout) -> None:
    assert slots_per_layer(small.spec, slots) == given


def test_slots_go_on_to_layers_with_more_experts(small: StoreLayout) -> None:
    first, second = small.spec.layers
    few = replace(first, ffn=replace(first.ffn, router=replace(first.ffn.router, experts=1)))
    spec = replace(small.spec, layers=(few, second))
    assert [slots_per_layer(spec, count) for count in range(6)] == [[0, 0], [1, 0], [1, 1], [1, 2], [1, 3], [1, 3]]


def test_a_model_without_experts_has_one_file() -> None:
    spec = spec_of("llama-2-70b")
    layout = layout_of(spec, "q4")
    assert list(layout.sizes) == [DENSE] and not layout.records and not layout.experts
    assert manifest.SCHEMA == 3
