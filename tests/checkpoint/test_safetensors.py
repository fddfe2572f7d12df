"""Damaged and hostile checkpoints: every one is explained, none is believed."""

from __future__ import annotations

import copy
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from moecli.checkpoint.folder import Checkpoint
from moecli.checkpoint.headers import read_header
from moecli.engine.load import open_model
from moecli.errors import CheckpointError, MoecliError
from moecli.planning.placement import fit
from tests.support.checkpoints import make, prompt, write
from tests.support.oracle import transformers
from tests.support.running import ALL, load, score

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}


def pack(header: Any, data: bytes = bytes(32), length: int | None = None) -> bytes:
    """A safetensors file; `length` is what it claims its header to be."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def changed(name: str = "a", **entry: Any) -> dict[str, Any]:
    return GOOD | {name: GOOD[name] | entry}


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        action()
    return caught.value.message


def test_a_sound_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pack(GOOD | {"__metadata__": {"format": "pt"}}))
    header = read_header(path)
    start = path.stat().st_size - 32
    assert {name: (t.dtype, t.shape, t.offset - start, t.size) for name, t in header.items()} == {
        "a": ("F32", (2, 3), 0, 24), "b": ("BF16", (4,), 24, 8)
    }  # fmt: skip


DAMAGE: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "its header claims 0 bytes and the file has 0"),
    "shorter than a length": (b"\x02\0\0", "the file has 3"),
    "cut short in the data": (pack(GOOD)[:-1], "cut short"),
    "cut short in the header": (pack(GOOD)[:40], "the file has 40"),
    "header longer than the file": (pack(GOOD, length=10_000), "its header claims 10000 bytes"),
    "huge header": (pack(GOOD, length=2**64 - 1), "its header claims 18446744073709551615 bytes"),
    "header of nothing": (pack(GOOD, length=0), "its header claims 0 bytes"),
    "header of one byte": (pack(GOOD, length=1), "its header claims 1 bytes"),
    "header cut by its length": (pack(GOOD, length=20), "its header is not readable JSON"),
    "not JSON": (pack(b"{nothing like it}"), "its header is not readable JSON"),
    "not UTF-8": (pack(b'{"\xff": 1}'), "its header is not readable JSON"),
    "a list": (pack([1, 2]), "its header does not hold a JSON object"),
    "a bomb of brackets": (pack(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "its header is not readable JSON"),
    "a number without end": (pack(b'{"a":' + b"9" * 10_000 + b"}"), "its header is not readable JSON"),
    "a name twice": (
        pack(b'{"a":' + json.dumps(GOOD["a"]).encode() + b',"a":' + json.dumps(GOOD["a"]).encode() + b"}"),
        "names a tensor twice",
    ),
    "a key twice in an entry": (pack(b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}'), "twice"),
    "overlap": (pack(changed("b", data_offsets=[20, 28])), "'b' overlaps the tensor before it"),
    "the same bytes twice": (pack(GOOD | {"c": GOOD["a"]}), "overlaps"),
    "end beyond the file": (pack(changed("b", data_offsets=[1000, 1008])), "'b' ends at byte"),
    "end far beyond any file": (pack(changed("b", data_offsets=[2**60, 2**60 + 8])), "the offsets of 'b' disagree"),
    "offsets turned round": (pack(changed(shape=[0], data_offsets=[24, 0])), "the offsets of 'a' disagree"),
    "negative offset": (pack(changed(data_offsets=[-24, 0])), "the offsets of 'a' disagree"),
    "three offsets": (pack(changed(data_offsets=[0, 12, 24])), "describes 'a' in an unknown way"),
    "no offsets": (pack(changed(data_offsets=None)), "describes 'a' in an unknown way"),
    "offsets as text": (pack(changed(data_offsets="04")), "disagree"),
    "fractional offset": (pack(changed(data_offsets=[0, 24.0])), "disagree"),
    "negative dimensions": (pack(changed(shape=[-2, -3])), "the shape and the offsets of 'a' disagree"),
    "fractional dimension": (pack(changed(shape=[2.0, 3])), "disagree"),
    "a truth for a dimension": (pack(changed(shape=[True, 6])), "disagree"),
    "a huge dimension": (pack(changed(shape=[2**63, 0], data_offsets=[0, 0])), "disagree"),
    "too many dimensions": (pack(changed(shape=[2, 3, *[1] * 7])), "disagree"),
    "shape of another size": (pack(changed(shape=[2, 4])), "the shape and the offsets of 'a' disagree"),
    "shape as text": (pack(changed(shape="", data_offsets=[0, 4])), "'a'"),
    "shape as an object": (pack(changed(shape={}, data_offsets=[0, 4])), "'a'"),
    "no shape": (pack(changed(shape=None)), "describes 'a' in an unknown way"),
    "unknown dtype": (pack(changed(dtype="F4")), "describes 'a' in an unknown way"),
    "a list for a dtype": (pack(changed(dtype=["F32"])), "describes 'a' in an unknown way"),
    "no dtype": (pack(changed(dtype=None)), "describes 'a' in an unknown way"),
    "an entry that is a list": (pack({"a": [1]}), "describes 'a' in an unknown way"),
    "an entry that is null": (pack({"a": None}), "describes 'a' in an unknown way"),
    "a very long name": (pack({"n" * 10_000: {}}), f"describes '{'n' * 80}'"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_explained(name: str, tmp_path: Path) -> None:
    content, said = DAMAGE[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    message = refusal(lambda: Checkpoint.open(tmp_path))
    assert said in message
    assert "model.safetensors is damaged" in message and len(message) < 300


def test_a_folder_for_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    assert "cannot be read" in refusal(lambda: Checkpoint.open(tmp_path))


def test_a_link_to_nothing_is_explained(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("gone")
    assert "cannot be read" in refusal(lambda: Checkpoint.open(tmp_path))


@pytest.mark.slow
@settings(max_examples=300)
@given(st.data())
def test_any_change_of_a_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    text = bytearray(pack(GOOD))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(text)
    try:
        for tensor in read_header(path).values():
            assert 0 <= tensor.offset <= tensor.offset + tensor.size <= len(text)
    except CheckpointError:
        pass


# Folders


def shards(tmp_path: Path, tensors: tuple[dict[str, Any], ...], index: Any = None) -> Path:
    for number, part in enumerate(tensors, 1):
        save_file(part, tmp_path / f"model-{number:05}-of-{len(tensors):05}.safetensors")
    if index is not None:
        text = index if isinstance(index, str) else json.dumps(index)
        (tmp_path / "model.safetensors.index.json").write_text(text)
    return tmp_path


ONE, TWO = {"a": torch.ones(2)}, {"b": torch.ones(3)}
FIRST, SECOND = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
INDEX = {"weight_map": {"a": FIRST, "b": SECOND}}


@pytest.mark.parametrize("index", [None, INDEX, INDEX | {"metadata": {"total_size": 20}}])
def test_shards_with_and_without_an_index(index: Any, tmp_path: Path) -> None:
    assert set(Checkpoint.open(shards(tmp_path, (ONE, TWO), index)).tensors) == {"a", "b"}


def test_mistrals_own_copy_is_not_read_twice(tmp_path: Path) -> None:
    save_file(ONE, tmp_path / "consolidated.00.safetensors")
    assert set(Checkpoint.open(shards(tmp_path, (ONE, TWO))).tensors) == {"a", "b"}


@pytest.mark.parametrize("index", [None, INDEX])
@pytest.mark.parametrize("gone", [FIRST, SECOND])
def test_a_missing_shard(index: Any, gone: str, tmp_path: Path) -> None:
    folder = shards(tmp_path, (ONE, TWO), index)
    (folder / gone).unlink()
    assert "1 of 2 shards" in refusal(lambda: Checkpoint.open(folder))


def test_a_shard_whose_link_leads_nowhere_is_missing(tmp_path: Path) -> None:
    """As an interrupted download leaves it in the Hub's cache."""
    folder = shards(tmp_path, (ONE, TWO), INDEX)
    (folder / FIRST).unlink()
    (folder / FIRST).symlink_to("gone")
    assert f"1 of 2 shards are missing, {FIRST} first" in refusal(lambda: Checkpoint.open(folder))


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = shards(tmp_path, (ONE, ONE | TWO))
    assert "'a' is in model-00001" in refusal(lambda: Checkpoint.open(folder))


@pytest.mark.parametrize(
    "index",
    ["{", "[]", "null", "{}", '{"weight_map": []}', '{"weight_map": {"a": []}}', '{"weight_map": 3}', "[" * 100_000,
     '{"weight_map": {"a": {"b": 1}}}', b'"\\ud800"'.decode()],
)  # fmt: skip
def test_an_index_that_is_none(index: str, tmp_path: Path) -> None:
    folder = shards(tmp_path, (ONE, TWO), index)
    assert "model.safetensors.index.json is not a readable index" in refusal(lambda: Checkpoint.open(folder))


def test_an_index_that_is_not_text(tmp_path: Path) -> None:
    folder = shards(tmp_path, (ONE, TWO), "{}")
    (folder / "model.safetensors.index.json").write_bytes(b"\xff\xfe\x00")
    assert "is not a readable index" in refusal(lambda: Checkpoint.open(folder))


@pytest.mark.parametrize("name", ["../evil", f"../{FIRST}", "/etc/evil", f"sub/{FIRST}", "e\0vil", 3, None, True])
def test_an_index_may_only_name_its_neighbours(name: object, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for lure in ("evil", FIRST):
        save_file(TWO, tmp_path / lure)
    shards(folder, (ONE, TWO), {"weight_map": {"a": FIRST, "b": name}})
    assert "outside its folder" in refusal(lambda: Checkpoint.open(folder))


@pytest.mark.parametrize("name", ["..", ".", "", "config.json"])
def test_an_index_must_name_files_that_hold_weights(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    folder = shards(tmp_path, (ONE, TWO), {"weight_map": {"a": FIRST, "b": name}})
    message = refusal(lambda: Checkpoint.open(folder))
    assert "shards are missing" in message or "config.json is damaged" in message or "outside its folder" in message


@pytest.mark.parametrize("name", ["x" * 5000, "\udc80", "\ud800"])
def test_an_index_with_names_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    folder = shards(tmp_path, (ONE,), {"weight_map": {"a": name}})
    refusal(lambda: Checkpoint.open(folder))


@pytest.mark.parametrize("stem", ["model", "**x", "[a]", "a*", "-"])
def test_shard_numbers_are_counted_under_any_name(stem: str, tmp_path: Path) -> None:
    for number, part in enumerate((ONE, TWO), 1):
        save_file(part, tmp_path / f"{stem}-0000{number}-of-00002.safetensors")
    assert set(Checkpoint.open(tmp_path).tensors) == {"a", "b"}
    (tmp_path / f"{stem}-00002-of-00002.safetensors").unlink()
    assert "1 of 2 shards" in refusal(lambda: Checkpoint.open(tmp_path))


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "holds no weights: no *.safetensors and no pytorch_model.bin" in refusal(lambda: Checkpoint.open(tmp_path))


@pytest.mark.parametrize("name", ["optimizer.pt", "x.ckpt", "x.pkl"])
def test_other_pickles_are_refused_unopened(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(CheckpointError, match=f"holds no weights that can be read, only {name}$") as caught:
        Checkpoint.open(tmp_path)
    assert caught.value.hint is not None and "safetensors" in caught.value.hint


# Models: a sound file that is not this model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "mixtral": write(make("mixtral"), root / "mixtral"),
        "mixtral fused": write(make("mixtral"), root / "fused", "fused"),
        "dbrx": write(make("dbrx"), root / "dbrx"),
        "qwen2_moe": write(make("qwen2_moe"), root / "qwen2"),
        "deepseek_v3": write(make("deepseek_v3"), root / "deepseek"),
    }


GATE = "model.layers.1.block_sparse_moe.experts.3.w1.weight"
STACK = "model.layers.1.mlp.experts.gate_up_proj"


def altered(source: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a model folder whose tensors went through `change`."""
    folder = Path(shutil.copytree(source, target / "copy"))
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def put(name: str, value: torch.Tensor) -> Callable[[dict[str, Any]], Any]:
    return lambda tensors: tensors.__setitem__(name, value)


MISFITS: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "no embedding": ("mixtral", lambda t: t.pop("model.embed_tokens.weight"), "'model.embed_tokens.weight' is missing"),
    "no head": ("mixtral", lambda t: t.pop("lm_head.weight"), "'lm_head.weight' is missing"),
    "one expert matrix gone": ("mixtral", lambda t: t.pop(GATE), f"'{GATE}' is missing"),
    "no experts at all": (
        "mixtral", lambda t: [t.pop(n) for n in list(t) if "experts" in n], "no expert under a name that mixtral uses"
    ),
    "no correction bias": (
        "deepseek_v3", lambda t: t.pop("model.layers.1.mlp.gate.e_score_correction_bias"), "e_score_correction_bias"
    ),
    "an unknown tensor": ("mixtral", put("model.layers.0.adapter", torch.ones(2)), "'model.layers.0.adapter'"),
    "a layer too many": ("mixtral", put("model.layers.2.input_layernorm.weight", torch.ones(32)), "model.layers.2"),
    "two unknown tensors": (
        "mixtral", lambda t: t.update(x=torch.ones(1), y=torch.ones(1)), "'x', which mixtral does not know (and 1 more)"
    ),
    "an unexpected bias": ("mixtral", put("model.layers.0.self_attn.q_proj.bias", torch.ones(32)), "does not know"),
    "a matrix too wide": ("mixtral", put("lm_head.weight", torch.ones(97, 33)), "head must be [97, 32]"),
    "a matrix too long": ("mixtral", put("lm_head.weight", torch.ones(98, 32)), "head must be [97, 32]"),
    "a turned matrix": ("mixtral", put("lm_head.weight", torch.ones(32, 97)), "head must be [97, 32]"),
    "a flat matrix": ("mixtral", put("lm_head.weight", torch.ones(97 * 32)), "head must be [97, 32]"),
    "a number for a matrix": ("mixtral", put("lm_head.weight", torch.tensor(1.0)), "head must be [97, 32]"),
    "a number for a vector": ("mixtral", put("model.norm.weight", torch.tensor(1.0)), "final_norm must be [32]"),
    "a matrix for a vector": ("mixtral", put("model.norm.weight", torch.ones(32, 32)), "final_norm must be [32]"),
    "a short norm": ("mixtral", put("model.norm.weight", torch.ones(31)), "final_norm must be [32]"),
    "queries short": ("mixtral", put("model.layers.0.self_attn.q_proj.weight", torch.ones(24, 32)), "qkv of layer 0"),
    "a turned expert": ("mixtral", put(GATE, torch.ones(32, 24)), f"{GATE} is [32, 24]"),
    "a number for an expert": ("mixtral", put(GATE, torch.tensor(1.0)), f"{GATE} is []"),
    "a vector for an expert": ("mixtral", put(GATE, torch.ones(24 * 32)), f"{GATE} is [768]"),
    "an expert too many": ("mixtral fused", put(STACK, torch.ones(6, 48, 32)), "not a stack of 5 experts"),
    "an expert too few": ("mixtral fused", put(STACK, torch.ones(4, 48, 32)), "not a stack of 5 experts"),
    "a turned stack": ("mixtral fused", put(STACK, torch.ones(5, 32, 48)), "does not hold experts of [24, 32]"),
    "an odd stack": ("mixtral fused", put(STACK, torch.ones(5, 49, 32)), "an odd number of rows"),
    "a number for a stack": ("mixtral fused", put(STACK, torch.tensor(1.0)), "not a stack of 5 experts"),
    "a vector for a stack": ("mixtral fused", put(STACK, torch.ones(5 * 48 * 32)), "not a stack of 5 experts"),
    "a stack of four axes": ("mixtral fused", put(STACK, torch.ones(5, 1, 48, 32)), "not a stack of 5 experts"),
    "no stack": ("mixtral fused", put(STACK, torch.ones(0, 48, 32)), "not a stack of 5 experts"),
    "a short flat stack": (
        "dbrx", put("transformer.blocks.0.ffn.experts.mlp.w1", torch.ones(6 * 23, 32)), "not hold experts of [24, 32]"
    ),
    "a flat stack with a remainder": (
        "dbrx", put("transformer.blocks.0.ffn.experts.mlp.w2", torch.ones(6 * 24 + 1, 32)), "not a stack of 6 experts"
    ),
    "whole numbers": ("mixtral", put("lm_head.weight", torch.ones(97, 32, dtype=torch.int32)), "stored as I32"),
    "an 8-bit expert": ("mixtral", put(GATE, torch.ones(24, 32).to(torch.float8_e4m3fn)), "stored as F8_E4M3"),
    "double precision": ("mixtral", put("lm_head.weight", torch.ones(97, 32).double()), "stored as F64"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MISFITS)
def test_weights_that_are_not_this_model(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    source, change, said = MISFITS[name]
    folder = altered(models[source], tmp_path, change)
    assert said in refusal(lambda: open_model(folder))


def test_the_model_of_another_config(models: dict[str, Path], tmp_path: Path) -> None:
    folder = altered(models["qwen2_moe"], tmp_path, lambda tensors: None)
    shutil.copy(models["mixtral"] / "config.json", folder / "config.json")
    assert "no expert under a name that mixtral uses" in refusal(lambda: open_model(folder))


def test_a_head_that_is_not_the_table_it_is_tied_to_counts_as_transformers_has_it(tmp_path: Path) -> None:
    folder = write(make("mixtral", tie_word_embeddings=True), tmp_path / "model")
    torch.manual_seed(7)
    more = {"lm_head.weight": torch.randn(97, 32), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    other = altered(folder, tmp_path, lambda tensors: tensors.update(more))
    model = open_model(other)
    assert not model.spec.tied_embeddings and "lm_head.weight is not the input table" in model.notes[0]
    with torch.no_grad():
        oracle = transformers().AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32)
        expected = oracle(torch.tensor([prompt(5)])).logits[0]
    assert torch.allclose(score(load(other), prompt(5)), expected, atol=1e-4)


def test_prediction_layers_after_the_last_are_left_alone(models: dict[str, Path], tmp_path: Path) -> None:
    extra = {"model.layers.2.eh_proj.weight": torch.ones(4, 4), "model.layers.2.enorm.weight": torch.ones(4)}
    extra["model.layers.2.big"] = torch.zeros(500_000, dtype=torch.int32)  # most bytes, and no number format of ours
    folder = altered(models["deepseek_v3"], tmp_path, lambda tensors: tensors.update(extra))
    assert open_model(folder).dtypes[0] == "fp32"
    too_far = altered(folder, tmp_path / "more", put("model.layers.3.enorm.weight", torch.ones(4)))
    assert "model.layers.3" in refusal(lambda: open_model(too_far))


@pytest.mark.parametrize(
    ("said", "body", "beside"),
    [
        ("fp4", ("weight", torch.zeros(32, 16, dtype=torch.uint8)),
         {"weight_scale": torch.ones(32, 2), "input_scale": torch.ones(())}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_headers_say_how_a_model_is_quantised(
    said: str, body: tuple[str, torch.Tensor], beside: dict[str, torch.Tensor], models: dict[str, Path], tmp_path: Path
) -> None:
    """Whatever config.json says or does not say."""
    stem = "model.layers.0.block_sparse_moe.experts.0.w1"

    def quantise(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{stem}.weight"]
        tensors |= {f"{stem}.{name}": value for name, value in (body, *beside.items())}

    folder = altered(models["mixtral"], tmp_path, quantise)
    assert f"quantised ({said})" in refusal(lambda: open_model(folder))


@pytest.mark.parametrize(
    "leftover",
    [{"quant_method": "gptq", "bits": 4}, {"quant_method": "bitsandbytes", "load_in_4bit": True}, {"bits": 4,
     "group_size": 64}, {"quant_method": "fp8", "fmt": "e4m3"}, {"quant_algo": "NVFP4"}, {"quant_method": "made up"}],
)  # fmt: skip
def test_a_quantisation_that_only_config_json_knows_is_left_aside(
    leftover: dict[str, Any], models: dict[str, Path], tmp_path: Path
) -> None:
    folder = altered(models["mixtral"], tmp_path, lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": leftover}))
    assert any("run as they are" in note for note in open_model(folder).weights.notes)


@pytest.mark.parametrize("padding", range(1, 9))
def test_odd_header_lengths_are_read_all_the_same(padding: int, models: dict[str, Path], tmp_path: Path) -> None:
    """The format does not promise that numbers are aligned."""
    expected = score(load(models["mixtral"]), prompt(20))
    folder = Path(shutil.copytree(models["mixtral"], tmp_path / "odd"))
    content = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + length].rstrip() + b" " * padding
    (folder / "model.safetensors").write_bytes(pack(text, content[8 + length :]))
    assert torch.allclose(score(load(folder), prompt(20)), expected, rtol=0, atol=1e-5)


def test_bytes_are_never_written_back(models: dict[str, Path]) -> None:
    path = models["mixtral"] / "model.safetensors"
    before = path.read_bytes()
    checkpoint = Checkpoint.open(models["mixtral"])
    checkpoint.buffer(checkpoint["lm_head.weight"])[:] = bytes(checkpoint["lm_head.weight"].size)
    assert path.read_bytes() == before


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}),
    st.lists(st.integers(-3, 2**50), max_size=4), st.sampled_from(["F16", "BF16", "I8", "F8_E4M3", "F64"]),
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=150)
@given(st.data())
def test_any_change_of_an_entry_is_read_or_refused(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    source = models[data.draw(st.sampled_from(["mixtral fused", "dbrx"]))]
    content = (source / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = copy.deepcopy(json.loads(content[8 : 8 + length]))
    names = sorted(header)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(names))
        action = data.draw(st.sampled_from(["drop", "rename", "key", "reshape", "number"]))
        entry = header.get(name)
        if action == "drop":
            header.pop(name, None)
        elif action == "rename":
            header[data.draw(st.sampled_from([*names, "x", ""]))] = entry
        elif action == "key" and isinstance(entry, dict):
            entry[data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "x"]))] = data.draw(VALUES)
        elif action == "reshape" and isinstance(entry, dict) and isinstance(entry.get("shape"), list):
            count = data.draw(st.integers(0, 3))
            entry["shape"] = (entry["shape"] + [1] * 3)[:count] if count else entry["shape"][::-1]
        elif action == "number" and isinstance(entry, dict) and entry.get("shape") and entry.get("data_offsets"):
            key = data.draw(st.sampled_from(["shape", "data_offsets"]))
            if isinstance(entry[key], list) and entry[key]:
                entry[key][data.draw(st.integers(0, len(entry[key]) - 1))] = data.draw(VALUES)
    folder = tmp_path_factory.getbasetemp() / "mutated"
    folder.mkdir(exist_ok=True)
    shutil.copy(source / "config.json", folder)
    (folder / "model.safetensors").write_bytes(pack(header, content[8 + length :]))
    try:
        model = open_model(folder)
    except MoecliError:
        return
    score(model.decoder(fit(model.spec, "fp32", 4, ALL)), [1, 2])
