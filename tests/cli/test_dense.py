"""A dense model beside the mixtures: it runs, packed and unpacked, and no command speaks of experts it has not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.stores import random_mistral

GREEDY = ("--temperature", "0", "-n", "8", "--json")


@pytest.fixture
def dense(tmp_path: Path) -> str:
    return str(random_mistral(tmp_path / "dense"))


@pytest.mark.parametrize("dtype", ["q4", "q8"])
def test_it_answers_the_same_packed_and_unpacked(dense, dtype, moecli, tmp_path):
    store = str(tmp_path / "store")
    made = moecli("pack", dense, "--dtype", dtype, "-o", store, "--json")
    assert made.returncode == 0, made.stderr
    assert "experts" not in json.loads(made.stdout)["dtypes"]
    assert moecli("verify", store).returncode == 0
    texts = []
    for arguments in ((dense, "--dtype", dtype), (store,)):
        result = moecli("run", *arguments, "The sea", *GREEDY)
        assert result.returncode == 0, result.stderr
        texts.append(json.loads(result.stdout)["token_ids"])
    assert texts[0] == texts[1] and len(texts[0]) == 8


def test_it_is_inspected_and_measured(dense, moecli):
    found = json.loads(moecli("inspect", dense, "--json").stdout)
    assert found["runnable"] and not found["lacks"]
    assert found["stored_parameters"] == found["parameters"]["total"] and not found["differences"]
    result = moecli("bench", dense, "--dtype", "q4", "--repeat", "1", "--prompt-tokens", "20", "-n", "4", "--json")
    document = json.loads(result.stdout)
    assert result.returncode == (0 if document["within_forecast"] else 3), result.stderr
    assert document["hit_rate"] is None


@pytest.mark.parametrize("packed", [False, True])
def test_what_does_not_fit_is_refused_without_a_word_of_disk(dense, packed, moecli, tmp_path):
    name = dense
    if packed:
        name = moecli("pack", dense, "-o", str(tmp_path / "store"), "--quiet").stdout.strip()
    result = moecli("run", name, "The sea", "--ram", "200MiB")
    assert result.returncode == 1
    assert "hint: a model without experts runs in RAM alone: --ram 2" in result.stderr
    assert "disk" not in result.stderr
    verdict = moecli("memory", name, "--dtype", "q4", "--ram", "200MiB").stdout
    assert "MiB with all of it in RAM" in verdict and "disk" not in verdict


def test_it_has_no_router_to_look_at(dense, moecli, tmp_path):
    for arguments in (("inspect", dense, "--routing"), ("run", dense, "The sea", "--trace", str(tmp_path / "t"))):
        result = moecli(*arguments)
        assert (result.returncode, result.stdout) == (1, "")
        assert "'dense' has no routed experts, so there is no routing to see" in result.stderr
