"""A model that fills gaps, from its checkpoint to a trace: run, pack, verify, memory, inspect --routing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.support.checkpoints import VOCABULARY, make, write
from tests.support.toy_tokenizers import with_sentinels, write_json

PROMPT = "The quick brown <extra_id_0> jumps over the <extra_id_1> dog"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Switch Transformer with T5's kind of tokenizer; few tokens fill its experts."""
    path = write(make("switch_transformers", expert_capacity=4, d_ff=8192), tmp_path_factory.mktemp("model") / "switch")
    with_sentinels(VOCABULARY).save(str(path / "tokenizer.json"))
    write_json(path / "tokenizer_config.json", {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"})
    return str(path)


def test_an_answer_is_spans_and_its_statistics_name_the_dropped(moecli: Run, folder: str) -> None:
    run = moecli("run", folder, PROMPT, "--seed", "4", "-n", "30")
    assert run.returncode == 0, run.stderr
    assert re.search(r"prompt \d+ tokens, .* dropped by full experts; answer", run.stderr)
    assert "fills gaps" not in run.stderr
    document = json.loads(moecli("run", folder, PROMPT, "--seed", "4", "-n", "30", "--json").stdout)
    assert document["text"].strip() == run.stdout.strip()
    assert 0 < document["dropped_share"] < 1
    text = PROMPT
    for span in document["spans"]:
        text = text.replace(span["sentinel"], span["text"], 1)
    assert document["filled_text"] == text and text in run.stderr


def test_a_prompt_without_a_gap_says_what_the_model_is(moecli: Run, folder: str) -> None:
    run = moecli("run", folder, "Why is the sky blue?", "-n", "3")
    assert run.returncode == 0
    assert "note: switch fills gaps in a text, it neither answers nor goes on: write <extra_id_0>" in run.stderr
    chat = moecli("run", folder, input="The <extra_id_0>\n")
    assert chat.returncode == 0, chat.stderr


def test_the_capacity_of_experts_is_an_option(moecli: Run, folder: str) -> None:
    shares = [
        json.loads(moecli("run", folder, PROMPT, "-n", "1", "--json", *option).stdout)["dropped_share"]
        for option in ((), ("--expert-capacity", "4"), ("--expert-capacity", "8"), ("--expert-capacity", "0"))
    ]
    assert shares[0] == shares[1] > shares[2] and shares[3] is None
    refused = moecli("run", "tiny", "hi", "--expert-capacity", "4")
    assert refused.returncode == 2 and "take any number of tokens" in refused.stderr


def test_a_store_gives_the_same_text_under_any_budget(
    moecli: Run, folder: str, tmp_path: Path, least_ram: Callable[..., str]
) -> None:
    store = str(tmp_path / "packed")
    assert moecli("pack", folder, "--dtype", "q8", "-o", store).returncode == 0
    assert moecli("verify", store).returncode == 0
    wanted = (PROMPT, "-n", "12", "--seed", "2", "--json")
    whole = json.loads(moecli("run", store, *wanted).stdout)
    least = json.loads(moecli("run", store, *wanted, "--ram", least_ram(store, *wanted), "--yes").stdout)
    assert least["expert_cache"]["misses"] > whole["expert_cache"]["misses"] == 0
    assert least["token_ids"] == whole["token_ids"]
    memory = json.loads(moecli("memory", store, "--json").stdout)
    assert memory["kv_cache_bytes"] == 4 * 512 * (64 + 64) * 2  # of the answer and of the prompt


def test_both_stacks_are_traced_apart(moecli: Run, folder: str, tmp_path: Path) -> None:
    trace = tmp_path / "turn.trace"
    run = moecli("run", folder, PROMPT, "-n", "3", "--trace", str(trace))
    assert run.returncode == 0, run.stderr
    encoder, decoder = (tmp_path / f"turn.{stack}.trace" for stack in ("encoder", "decoder"))
    for path, layers in ((encoder, [1, 3]), (decoder, [5, 7])):
        shown = json.loads(moecli("inspect", folder, "--routing", "--from", str(path), "--json").stdout)
        assert [layer["layer"] for layer in shown["routing"]["layers"]] == layers
    screen = moecli("inspect", folder, "--routing", "--limit", "400", "--capacity", "1,2")
    assert screen.returncode == 0, screen.stderr
    first, second = screen.stdout.split("switch (decoder) in")
    for part in ("switch (encoder) in" + first, second):
        assert "drop at 1x" in part and "drop at 2x" in part and "of the choices were dropped" in part
    wanted = ("inspect", folder, "--routing", "--limit", "400", "--json")
    document = json.loads(moecli(*wanted).stdout)
    read, written = (document[f"routing_{stack}"]["tokens"] for stack in ("encoder", "decoder"))
    assert written < read
    again = json.loads(moecli(*wanted).stdout)
    assert again["routing_decoder"]["layers"] == document["routing_decoder"]["layers"]  # the same gaps
