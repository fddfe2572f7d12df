"""`--tokenizer`: a file, a folder, a model or a Hub id stands in for the tokenizer that a model lacks, or has."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import moecli as package
from tests.support import hub_server
from tests.support.in_process import moecli
from tests.support.toy_tokenizers import byte_level

TINY = Path(package.__file__).parent / "tiny"
RUN = ("The sea", "-n", "6", "--temperature", "0", "--json")
REPO, OTHER = "somebody/mute-moe", "somebody/only-a-tokenizer"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def mute(tmp_path: Path) -> Path:
    """The built-in model without its tokenizer."""
    folder = tmp_path / "mute"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("tokenizer*", "__pycache__"))
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, mute: Path) -> Iterator[hub_server.Hub]:
    """That model, and its tokenizer in another repository."""
    with hub_server.serve_library(monkeypatch) as running:
        for path in mute.iterdir():
            running.put(f"{REPO}/{path.name}", path.read_bytes())
        for name in TOKENIZER:
            running.put(f"{OTHER}/{name}", (TINY / name).read_bytes())
        running.put(f"{OTHER}/model.safetensors", b"not wanted")
        yield running


@pytest.fixture(scope="module")
def wanted() -> list[int]:
    """What the built-in model says with its own."""
    found: list[int] = moecli("run", "tiny", *RUN).json["token_ids"]
    return found


def refusal(*arguments: str | Path) -> str:
    ended = moecli(*arguments)
    assert ended.code in (1, 2) and "Traceback" not in ended.err
    return ended.failure


def test_a_file_a_folder_and_a_model(mute: Path, wanted: list[int], tmp_path: Path) -> None:
    assert "--tokenizer names another one" in refusal("run", mute, "x")
    shutil.copy(TINY / "tokenizer.json", tmp_path / "any-name.json")
    for name in (tmp_path / "any-name.json", TINY / "tokenizer.json", TINY, "tiny"):
        assert moecli("run", mute, *RUN, "--tokenizer", name).json["token_ids"] == wanted
    told = moecli("inspect", mute, "--routing", "--prompt", "The sea", "--json", "--tokenizer", "tiny").json
    own = moecli("inspect", "tiny", "--routing", "--prompt", "The sea", "--json").json
    assert told["routing"]["layers"] == own["routing"]["layers"]


def test_a_repository_is_asked_for_its_tokenizer_alone_and_once(
    hub: hub_server.Hub, mute: Path, wanted: list[int]
) -> None:
    for _ in range(2):
        assert moecli("run", mute, *RUN, "--tokenizer", OTHER).json["token_ids"] == wanted
    assert hub.sent_of["tokenizer.json"] == (TINY / "tokenizer.json").stat().st_size
    assert not hub.requests("model.safetensors")
    assert moecli("run", mute, *RUN, "--tokenizer", OTHER, "--offline").json["token_ids"] == wanted
    assert OTHER not in moecli("list", "--json").out, "it is no model"


def test_pull_lays_it_beside_the_weights(hub: hub_server.Hub, wanted: list[int]) -> None:
    asked = moecli("pull", REPO)
    assert asked.code == 2 and "note: it has no tokenizer that can be read" in asked.err
    assert "no tokenizer" in json.dumps(moecli("pull", REPO, "--dry-run", "--json").json["doubts"])
    assert "tokenizer    none that can be read" in moecli("pull", REPO, "--dry-run").out
    assert "tokenizer    the one that --tokenizer" in moecli("pull", REPO, "--dry-run", "--tokenizer", OTHER).out
    snapshot = Path(moecli("pull", REPO, "--tokenizer", OTHER, "--json").json["path"])
    assert (snapshot / "tokenizer.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()
    assert moecli("run", REPO, *RUN).json["token_ids"] == wanted
    assert moecli("verify", REPO).code == 0


def test_run_fetches_nothing_that_it_could_not_run(hub: hub_server.Hub, wanted: list[int]) -> None:
    said = refusal("run", REPO, *RUN, "--yes")
    assert "no tokenizer that can be read: add --tokenizer" in said and f"hint: moecli run {REPO} --tokenizer" in said
    assert not list(Path(os.environ["HF_HOME"]).rglob("*.safetensors"))
    assert moecli("run", REPO, *RUN, "--yes", "--tokenizer", OTHER).json["token_ids"] == wanted


def test_pull_packs_it(hub: hub_server.Hub) -> None:
    store = Path(moecli("pull", REPO, "--dtype", "q8", "--tokenizer", OTHER, "--json").json["path"])
    assert (store / "tokenizer.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()
    assert moecli("verify", store).code == 0
    assert moecli("run", store, *RUN).code == 0
    assert "is packed already" in refusal("pull", REPO, "--dtype", "q8", "--tokenizer", OTHER)


def test_a_repository_that_has_one_is_given_none(hub: hub_server.Hub) -> None:
    hub.put(f"{REPO}/tokenizer.json", (TINY / "tokenizer.json").read_bytes())
    assert "has a tokenizer, tokenizer.json" in refusal("pull", REPO, "--tokenizer", "tiny")


def test_pack_asks_and_packs_it(mute: Path, wanted: list[int], tmp_path: Path) -> None:
    store = tmp_path / "packed"
    asked = moecli("pack", mute, "--dtype", "bf16", "-o", store)
    assert asked.code == 2 and "no tokenizer that can be read" in asked.err and not store.exists()
    moecli("pack", mute, "--dtype", "bf16", "-o", store, "--yes")
    assert "--tokenizer names" in refusal("run", store, "x")
    assert moecli("run", store, *RUN, "--tokenizer", "tiny").json["token_ids"] == wanted
    other = tmp_path / "other"
    assert moecli("pack", mute, "--dtype", "bf16", "-o", other, "--tokenizer", TINY).code == 0
    assert moecli("run", other, *RUN).json["token_ids"] == wanted
    assert moecli("verify", other).code == 0
    assert "is there already" in refusal("pack", mute, "--dtype", "bf16", "-o", other, "--yes"), "another tokenizer"


def test_what_is_none_is_refused(hub: hub_server.Hub, mute: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.model").write_bytes(b"not at all a model")
    hub.put("somebody/else/README.md", b"")
    for name, said in {
        "no-such-name": "no model is called 'no-such-name'",
        str(tmp_path / "empty"): "holds no tokenizer that can be read",
        str(tmp_path / "damaged.model"): "cannot be read",
        str(mute): "holds no tokenizer that can be read",
        "somebody/else": "holds no tokenizer that can be read",
        "nobody/nothing": "the Hub knows no model",
        "": "cannot be the name of a model",
        "~nobody-here/x": "there is no folder",
    }.items():
        assert said in refusal("run", mute, "x", "--tokenizer", name)
        assert said in refusal("pack", mute, "-o", tmp_path / "packed", "--tokenizer", name)
        assert said in refusal("pull", REPO, "--tokenizer", name)
    assert not hub.requests("model.safetensors") and not (tmp_path / "packed").exists()
    assert "is not on this machine" in refusal("run", mute, "x", "--tokenizer", "some/thing", "--offline")
    assert "--tokenizer goes with --routing" in refusal("inspect", "tiny", "--tokenizer", "tiny")
    assert not list(Path(os.environ["HF_HOME"]).rglob("*.incomplete"))


def test_one_with_more_ids_than_the_model_has_rows(mute: Path, tmp_path: Path) -> None:
    made = byte_level()
    made.add_tokens([f"<{number}>" for number in range(5000)])
    made.save(str(tmp_path / "large.json"))
    assert "the tokenizer knows id" in refusal("run", mute, "<4999>", "--tokenizer", tmp_path / "large.json")
    assert "the tokenizer knows id" in refusal(
        "inspect", mute, "--routing", "--prompt", "<4999>", "--tokenizer", tmp_path / "large.json"
    )
