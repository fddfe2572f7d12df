"""Packed models on the command line: run within a budget, listed, verified, removed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.stores import hollow

QUESTION = ("The sea", "--temperature", "0", "-n", "12", "--json")


@pytest.fixture
def store(moecli: Any, tmp_path: Path) -> Path:
    result = moecli("pack", "tiny", "-o", str(tmp_path / "packed"), "--quiet")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{tmp_path / 'packed'}\n"
    return tmp_path / "packed"


def test_any_budget_gives_the_same_text(moecli: Any, store: Path) -> None:
    """From all in RAM down to the least that the refusal itself names."""
    whole = json.loads(moecli("run", str(store), *QUESTION).stdout)
    assert whole["dtype"] == "q4"
    assert whole["expert_cache"]["misses"] == 0
    refused = moecli("run", str(store), *QUESTION, "--ram", "100MiB")
    assert refused.returncode == 1
    assert "short" in refused.stderr
    least = refused.stderr.split("--ram ")[1].split(";")[0]
    result = moecli("run", str(store), *QUESTION, "--ram", least, "--policy", "lru")
    assert result.returncode == 0, result.stderr
    small = json.loads(result.stdout)
    assert small["token_ids"] == whole["token_ids"]
    assert small["expert_cache"]["misses"] > 0
    assert small["expert_cache"]["bytes_read"] > 0
    assert "stay on disk: expect" in result.stderr


def test_a_bare_name_means_its_store(moecli: Any) -> None:
    assert json.loads(moecli("run", "tiny", *QUESTION).stdout)["dtype"] == "bf16"
    assert moecli("pack", "tiny", "--dtype", "q8").returncode == 0
    result = moecli("run", "tiny", *QUESTION)
    assert json.loads(result.stdout)["dtype"] == "q8"
    assert "tiny-q8" in result.stderr
    assert json.loads(moecli("run", "tiny", *QUESTION, "--dtype", "bf16").stdout)["dtype"] == "bf16"
    assert json.loads(moecli("run", "tiny-q8", *QUESTION).stdout)["dtype"] == "q8"
    assert "q8" in moecli("inspect", "tiny-q8").stdout
    assert json.loads(moecli("memory", "tiny-q8", "--json").stdout)["dtype"] == "q8"
    names = [model["name"] for model in json.loads(moecli("list", "--json").stdout)]
    assert names == ["tiny", "tiny-q8"]


def test_a_store_in_another_format_is_not_taken_for_the_one_asked(moecli: Any, store: Path) -> None:
    result = moecli("run", str(store), *QUESTION, "--dtype", "q8")
    assert result.returncode == 2
    assert "packed to q4" in result.stderr


def test_dense_weights_in_a_format_of_their_own(moecli: Any) -> None:
    """By both options or by their word, packed or not: one text, one name, one size."""
    unpacked = json.loads(moecli("run", "tiny", *QUESTION, "--dtype", "q4", "--dense", "q8").stdout)
    assert moecli("pack", "tiny").returncode == 0
    result = moecli("pack", "tiny", "--dense", "q8", "--json")
    document = json.loads(result.stdout)
    assert (document["name"], document["dtype"]) == ("tiny-q4-dense-q8", "q4-dense-q8")
    assert {document["dtypes"][role] for role in ("qkv", "o", "embedding")} == {"q8"}
    assert document["dtypes"]["experts"] == "q4"
    for word in (["tiny:q4-dense-q8"], ["tiny", "--dtype", "q4", "--dense", "q8"]):
        packed = json.loads(moecli("run", *word, *QUESTION).stdout)
        assert (packed["model"], packed["token_ids"]) == ("tiny-q4-dense-q8", unpacked["token_ids"])
        assert packed["dtype"] == unpacked["dtype"] == "q4-dense-q8"
    estimate = json.loads(moecli("memory", "tiny", "--dtype", "q4", "--dense", "q8", "--json").stdout)
    assert estimate["dtype"] == "q4-dense-q8"
    listed = {each["name"]: each["format"] for each in json.loads(moecli("list", "--json").stdout)}
    assert listed == {"tiny": "bf16", "tiny-q4": "q4", "tiny-q4-dense-q8": "q4-dense-q8"}
    assert moecli("verify", "tiny-q4-dense-q8", "--against", "tiny").returncode == 0
    refused = moecli("run", "tiny-q4", *QUESTION, "--dtype", "q4", "--dense", "q8")
    assert refused.returncode == 2 and "does not suit a store packed to q4" in refused.stderr


def test_a_copy_on_another_disk_is_read_beside_the_store(moecli: Any, store: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(store, tmp_path / "copy")
    whole = json.loads(moecli("run", str(store), *QUESTION).stdout)
    least = moecli("run", str(store), *QUESTION, "--ram", "100MiB").stderr.split("--ram ")[1].split(";")[0]
    result = moecli("run", str(store), *QUESTION, "--ram", least, "--also", str(copy))
    both = json.loads(result.stdout)
    assert both["token_ids"] == whole["token_ids"] and both["expert_cache"]["bytes_read"] > 0
    assert "left alone" not in result.stderr
    next(copy.glob("experts-*")).unlink()
    for model, folder, problem in (
        (str(store), store, "is the packed model itself"),
        (str(store), copy, "is damaged: its experts-"),
        (str(store), tmp_path, "is not a packed model"),
        ("tiny", copy, "goes with a packed model"),
    ):
        refused = moecli("run", model, *QUESTION, "--also", str(folder))
        assert refused.returncode in (1, 2) and problem in refused.stderr and "hint: " in refused.stderr


def test_verify_names_the_damaged_expert_and_rm_frees_the_store(moecli: Any, store: Path) -> None:
    assert moecli("verify", str(store), "--against", "tiny").returncode == 0
    path = store / "experts-003.safetensors"
    with path.open("r+b") as file:
        file.seek(60_000)
        byte = file.read(1)
        file.seek(60_000)
        file.write(bytes([byte[0] ^ 1]))
    for more in ([], ["--against", "tiny"]):
        result = moecli("verify", str(store), *more)
        assert result.returncode == 3
        assert "experts-003.safetensors: expert 1 of layer 3 is damaged" in result.stdout
        assert "hint: moecli rm" in result.stderr
    size = sum(file.stat().st_size for file in store.iterdir())
    removed = moecli("rm", str(store), "--yes", "--json")
    assert json.loads(removed.stdout)["freed_bytes"] == size
    assert not store.exists()


def test_a_slow_model_is_forecast_and_needs_a_yes(moecli: Any, tmp_path: Path) -> None:
    """27 GB of experts for each token cannot come from any disk in a second."""
    config = {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 1024,
        "intermediate_size": 65536, "num_attention_heads": 8, "num_key_value_heads": 8, "num_local_experts": 8,
        "num_experts_per_tok": 8, "num_hidden_layers": 16, "vocab_size": 4096, "max_position_embeddings": 4096,
    }  # fmt: skip
    store = hollow(tmp_path / "slow", config)
    result = moecli("run", str(store), "hello", "-n", "1", "--ram", "1GiB")
    assert result.returncode == 2
    assert "stay on disk: expect about 0." in result.stderr
    assert "add --yes" in result.stderr
    assert result.stdout == ""
