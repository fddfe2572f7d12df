"""Which files of a folder hold the model, whatever else lies beside them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moecli.checkpoint.files import SAFETENSORS, choose, missing, weight_map
from moecli.checkpoint.folder import Checkpoint
from moecli.engine.load import open_model
from moecli.errors import CheckpointError
from moecli.hub import cache
from tests.support.checkpoints import make, prompt, write
from tests.support.running import load, score

SINGLE, INDEX = SAFETENSORS.single, SAFETENSORS.index
ONE, TWO, THREE = (f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))
OTHER = "model-00001-of-00007.safetensors"
SHARDS = {"a": ONE, "b": TWO, "c": THREE}

CHOICES: dict[str, tuple[list[str], dict[str, str] | None, set[str], list[str]]] = {
    "one file": ([SINGLE], None, set(), [SINGLE]),
    "one file and adapters": ([SINGLE, "adapter_model.safetensors"], None, set(), [SINGLE]),
    "one file and variants": ([SINGLE, "model.fp16.safetensors", "model.bf16.safetensors"], None, set(), [SINGLE]),
    "one file and shards of another": ([SINGLE, OTHER], None, set(), [SINGLE]),
    "stale index": ([SINGLE], {"a": OTHER}, {"z"}, [SINGLE]),
    "stale index, complete": ([SINGLE], SHARDS, {"a", "b", "c"}, [SINGLE]),
    "some old shards, complete": ([SINGLE, ONE], SHARDS, {"a", "b", "c"}, [SINGLE]),
    "all shards, complete": ([SINGLE, ONE, TWO, THREE], SHARDS, {"a", "b", "c", "d"}, [SINGLE]),
    "all shards, a part": ([SINGLE, ONE, TWO, THREE], SHARDS, {"a"}, [ONE, TWO, THREE]),
    "some shards, a part": ([SINGLE, ONE], SHARDS, {"a"}, [ONE, TWO, THREE]),
    "the index names the one file": ([SINGLE, "mtp.safetensors"], {"a": SINGLE, "m": "mtp.safetensors"}, {"a"},
                                     [SINGLE, "mtp.safetensors"]),
    "index": ([ONE, TWO, THREE, "lora.safetensors", "consolidated.safetensors"], SHARDS, set(), [ONE, TWO, THREE]),
    "numbered": ([ONE, TWO, THREE], None, set(), [ONE, TWO, THREE]),
    "numbered and heads": ([ONE, TWO, THREE, "value_head.safetensors"], None, set(), [ONE, TWO, THREE]),
    "numbered and whatever": ([ONE, TWO, THREE, "extra.safetensors"], None, set(), [ONE, TWO, THREE]),
    "numbered variants": ([ONE, TWO, THREE, "model.fp16-00001-of-00001.safetensors"], None, set(), [ONE, TWO, THREE]),
    "old variants": ([ONE, TWO, THREE, "model-00001-of-00001.fp16.safetensors"], None, set(), [ONE, TWO, THREE]),
    "a variant alone": (["model.fp16.safetensors"], None, set(), ["model.fp16.safetensors"]),
    "any name": (["weights.safetensors", "consolidated.safetensors"], None, set(), ["weights.safetensors"]),
    "Mistral's alone": (["consolidated.00.safetensors"], None, set(), []),
    "adapters alone": (["adapter_model.safetensors", "pytorch_lora_weights.safetensors"], None, set(), []),
    "states alone": (["optimizer.safetensors", "random_states_0.safetensors"], None, set(), []),
    "nothing": (["config.json"], None, set(), []),
}  # fmt: skip


@pytest.mark.parametrize("case", CHOICES)
def test_which_files_count(case: str) -> None:
    names, index, single, wanted = CHOICES[case]
    assert choose(names, index, lambda: single) == wanted


@pytest.mark.parametrize(
    ("chosen", "names", "gone"),
    [
        ([ONE, TWO, THREE], {ONE, TWO, THREE}, []),
        ([ONE, TWO, THREE], {ONE}, [TWO, THREE]),
        ([ONE, THREE], {ONE, THREE}, [TWO]),
        ([SINGLE], {SINGLE}, []),
        (["m-000002-of-000002.safetensors"], {"m-000002-of-000002.safetensors"}, ["m-000001-of-000002.safetensors"]),
        (["m-1-of-999999999.safetensors"], {"m-1-of-999999999.safetensors"}, []),
    ],
)
def test_which_shards_are_missing(chosen: list[str], names: set[str], gone: list[str]) -> None:
    assert missing(chosen, names) == gone


def folder(tmp_path: Path, files: dict[str, dict[str, torch.Tensor]], index: dict[str, str] | None = None) -> Path:
    for name, tensors in files.items():
        save_file(tensors, tmp_path / name)
    if index is not None:
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": index}))
    return tmp_path


def value(checkpoint: Checkpoint, name: str) -> float:
    return float(torch.frombuffer(checkpoint.buffer(checkpoint[name]), dtype=torch.float32)[0])


@pytest.mark.parametrize("holder", [ONE, TWO, THREE])
def test_the_index_decides_between_copies(holder: str, tmp_path: Path) -> None:
    copies = {name: {"a": torch.full((2,), float(n)), name: torch.ones(1)} for n, name in enumerate((ONE, TWO, THREE))}
    index = {"a": holder} | {name: name for name in copies}
    checkpoint = Checkpoint.open(folder(tmp_path, copies, index))
    assert value(checkpoint, "a") == (ONE, TWO, THREE).index(holder)
    del index["a"]
    with pytest.raises(CheckpointError, match="'a' is in model-00001"):
        Checkpoint.open(folder(tmp_path, copies, index))


def test_a_promise_that_a_shard_does_not_keep(tmp_path: Path) -> None:
    files = {ONE: {"a": torch.ones(1)}, TWO: {"x": torch.ones(1)}, THREE: {"c": torch.ones(1)}}
    checkpoint = Checkpoint.open(folder(tmp_path, files, SHARDS))
    with pytest.raises(CheckpointError, match=f"'b' is missing from the checkpoint: {INDEX} says that {TWO} holds it"):
        checkpoint["b"]


def test_missing_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"2 of 3 shards are missing, {TWO} first, then {THREE}"):
        Checkpoint.open(folder(tmp_path, {ONE: {"a": torch.ones(1)}}, SHARDS))


def test_a_damaged_single_file_does_not_hide_whole_shards(tmp_path: Path) -> None:
    path = folder(tmp_path, {ONE: {"a": torch.ones(1)}, TWO: {"b": torch.ones(1)}, THREE: {"c": torch.ones(1)}}, SHARDS)
    (path / SINGLE).write_bytes(b"cut short")
    assert set(Checkpoint.open(path).tensors) == {"a", "b", "c"}


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    path = folder(tmp_path, {"adapter_model.safetensors": {"a": torch.ones(1)}})
    with pytest.raises(CheckpointError, match=r"holds adapter_model.safetensors and no model.safetensors") as caught:
        Checkpoint.open(path)
    assert "adapter" in str(caught.value.hint)


@pytest.mark.skipif(not hasattr(__import__("os"), "mkfifo"), reason="no pipes with names")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / SINGLE)
    with pytest.raises(CheckpointError, match="no regular file"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a\\b", "C:x", "..", "", "a/b", "x\0y", None, 5])
def test_names_outside_the_folder(name: Any) -> None:
    with pytest.raises(CheckpointError, match="names a file outside its folder") as caught:
        weight_map(json.dumps({"weight_map": {"a": ONE, "b": name}}).encode(), "index")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("files", ["one", "each its own"])
def test_an_index_of_many_names_is_read_or_refused_at_once(files: str) -> None:
    count = 200_000
    index = {f"t{n}": ONE if files == "one" else f"{n}.safetensors" for n in range(count)}
    content = json.dumps({"weight_map": index}).encode()
    began = time.process_time()
    if files == "one":
        assert len(weight_map(content, "index")) == count
    else:
        with pytest.raises(CheckpointError, match="names 200000 files"):
            weight_map(content, "index")
    assert time.process_time() - began < 2


CACHED: dict[str, tuple[list[str], dict[str, str] | None, str | None]] = {
    "one file": ([SINGLE], None, None),
    "stale index": ([SINGLE], {"a": ONE}, None),
    "adapter": (["adapter_model.safetensors"], None, "its weights are missing"),
    "adapter and an index": (["adapter_model.safetensors"], SHARDS, "3 of its 3 weight files are missing"),
    "shards": ([ONE, TWO, THREE], SHARDS, None),
    "a shard missing": ([ONE, THREE], SHARDS, "1 of its 3 weight files are missing"),
    "a shard missing, no index": ([ONE, THREE, "lora.safetensors"], None, "1 of its 3 weight files are missing"),
    "the index names the one file": ([SINGLE], {"a": SINGLE, "m": "mtp.safetensors"},
                                     "1 of its 2 weight files are missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", CACHED)
def test_what_a_cached_model_lacks(case: str, tmp_path: Path) -> None:
    names, index, lack = CACHED[case]
    (tmp_path / "config.json").write_text("{}")
    folder(tmp_path, {name: {"a": torch.ones(1)} for name in names}, index)
    assert cache.lack(tmp_path) == lack


# Tensors beside a model's own


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(make("mixtral", tie_word_embeddings=True), tmp_path_factory.mktemp("tied") / "model")


def with_tensors(source: Path, target: Path, change: dict[str, torch.Tensor], without: tuple[str, ...] = ()) -> Path:
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = {name: tensor for name, tensor in load_file(source / SINGLE).items() if name not in without}
    save_file(tensors | change, target / SINGLE)
    return target


HEADS = ["v_head.summary.weight", "v_head.summary.bias", "score.weight", "value_head.weight", "classifier.bias",
         "reward_head.0.weight", "rm_head.weight", "medusa_heads.3.weight", "regression_layer.weight"]  # fmt: skip


def test_heads_for_training_are_left_out_with_a_note(tied: Path, tmp_path: Path) -> None:
    model = open_model(with_tensors(tied, tmp_path, {name: torch.zeros(1, 32) for name in HEADS}))
    assert model.notes == (f"left out as a head for training: {', '.join(sorted(HEADS))}",)
    assert open_model(tied).notes == ()


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.block_sparse_moe.gate.e_score_correction_bias", "model.layers.0.v_head.weight",
     "model.score.weight", "lm_head.bias", "lm_head.adapter.weight", "scores", "head.weight"],
)  # fmt: skip
def test_what_is_unknown_inside_the_model_is_refused(name: str, tied: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not know"):
        open_model(with_tensors(tied, tmp_path, {name: torch.zeros(4)}))


@pytest.mark.parametrize("name", ["rotary_emb.inv_freq", "self_attn.rotary_emb.cos_cached", "self_attn.masked_bias"])
def test_buffers_are_computed_anew(name: str, tied: Path, tmp_path: Path) -> None:
    assert open_model(with_tensors(tied, tmp_path, {f"model.layers.1.{name}": torch.ones(4)})).notes == ()


def test_a_copy_of_the_tied_table_is_left_out_and_either_may_be_missing(tied: Path, tmp_path: Path) -> None:
    expected = score(load(tied), prompt(5))
    table = load_file(tied / SINGLE)["model.embed_tokens.weight"]
    copy = {"lm_head.weight": table.clone()}
    both = with_tensors(tied, tmp_path / "both", copy)
    swapped = with_tensors(tied, tmp_path / "swapped", copy, without=("model.embed_tokens.weight",))
    for path in (both, swapped):
        assert open_model(path).spec.tied_embeddings and open_model(path).notes == ()
        assert torch.equal(score(load(path), prompt(5)), expected)
