"""`moecli pack` as a real process: what it prints, where the store goes, how it is interrupted."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from moecli.store.packed import PackedStore
from tests.support.processes import wait_for
from tests.support.stores import contents, packed, random_mixtral


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that packing can be interrupted: 22 million weights."""
    folder = tmp_path_factory.mktemp("source") / "six-layers"
    return random_mixtral(folder, hidden_size=256, intermediate_size=512, num_local_experts=8, num_hidden_layers=6)


def test_tiny_goes_where_packed_models_lie(moecli, tmp_path):
    result = moecli("pack", "tiny")
    folder = tmp_path / "moecli" / "models" / "tiny-q4"
    assert (result.returncode, result.stdout) == (0, f"{folder}\n")
    first, *roles, then = result.stderr.splitlines()
    assert then == "next: moecli run tiny-q4"
    assert re.fullmatch(r"tiny-q4: 15\.2 MiB -> [\d.]+ MiB \(\d\d%\) in [\d.]+ s", first)
    assert {line.split()[0]: line.split("  ")[-1] for line in roles} == {
        "q4": "experts, qkv, o", "q8": "embedding",
        "bf16": "attn_norm, ffn_norm, router, final_norm",
    }  # fmt: skip
    assert PackedStore.open(folder).source.model == "tiny"
    again = moecli("pack", "tiny")
    assert (again.returncode, again.stdout) == (0, f"{folder}\n")
    assert again.stderr == f"tiny-q4 is here already: q4, {re.search(r'-> (.*) [(]', first)[1]}\n"
    of_itself = moecli("pack", str(folder), "--dtype", "q8")
    assert of_itself.returncode == 1
    assert of_itself.stderr == (
        f"error: {folder} is packed already, to q4\n"
        "hint: to have another format, pack the checkpoint it was made from\n"
    )


def test_json_quiet_and_output(moecli, tmp_path):
    document = json.loads(moecli("pack", "tiny", "--dtype", "q8", "--json").stdout)
    assert (document["name"], document["dtype"], document["schema_version"]) == ("tiny-q8", "q8", 1)
    assert document["bytes"] == PackedStore.open(Path(document["path"])).bytes
    assert document["dtypes"]["router"] == "bf16" and document["source_bytes"] == document["packed_bytes"] > 15 * 10**6
    quiet = moecli("pack", "tiny", "--dtype", "auto", "-o", str(tmp_path / "here" / "it is"), "--quiet")
    again = moecli("pack", "tiny", "--dtype", "auto", "-o", str(tmp_path / "here" / "it is too"))
    assert again.stderr.splitlines()[-1] == f"next: moecli run '{tmp_path / 'here' / 'it is too'}'"
    assert (quiet.stdout, quiet.stderr) == (f"{tmp_path / 'here' / 'it is'}\n", "")
    assert PackedStore.open(tmp_path / "here" / "it is").dtype == "bf16"


def test_verbose_says_what_will_be_written(moecli):
    first, dense, experts, *_ = moecli("pack", "tiny", "-v").stderr.splitlines()
    assert first.endswith("models/tiny-q4: 4.68 MiB")
    assert dense == "  1.81 MiB of dense tensors, computed with in bf16"
    assert experts == "  56 experts in 7 layers, 52 KiB each"


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (["tiny", "--dtype", "q5"], 2, "unknown --dtype 'q5'", "the nearest is q4; it takes auto, fp32,"),
        (["tinny"], 1, "no model is called 'tinny'", "did you mean tiny?"),
        (["mixtral"], 1, "is not on this machine", "moecli pull mixtral"),
        (["tiny", "-o", "."], 1, "is not a packed model", "name another folder with -o"),
    ],
)
def test_what_cannot_be_packed_is_explained(arguments, code, message, hint, moecli):
    result = moecli("pack", *arguments)
    error, told = result.stderr.splitlines()
    assert result.returncode == code and not result.stdout
    assert error.startswith("error: ") and message in error and told.startswith(f"hint: {hint}")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_it_goes_on(how, checkpoint, start, moecli, tmp_path):
    target = tmp_path / "store"
    process = start("pack", str(checkpoint), "-o", str(target))
    journal = tmp_path / "store.partial" / "journal"
    wait_for(lambda: process.poll() is not None or (journal.exists() and b"sealed" in journal.read_bytes()))
    process.send_signal(how)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (130 if how == signal.SIGINT else -9, "")
    assert errors == ("interrupted; the same command goes on from here\n" if how == signal.SIGINT else "")
    assert journal.exists() and not target.exists()
    result = moecli("pack", str(checkpoint), "-o", str(target))
    assert result.returncode == 0 and " earlier" in result.stderr.splitlines()[0]
    assert contents(target) == contents(packed(checkpoint, tmp_path / "whole").folder)


def test_a_terminal_sees_how_far_it_is(checkpoint, on_a_terminal, environment, tmp_path):
    environment["COLUMNS"] = "100"
    status, _, shown = on_a_terminal("pack", str(checkpoint), "-o", str(tmp_path / "store"))
    assert status == 0 and all(word in shown for word in ("packing six-layers to q4", "MiB", "/s"))
