"""Every command on weights in torch's own files: here and on the Hub, one file and shards, to the same end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import moecli as package
from tests.support import hub_server
from tests.support.stores import packed
from tests.support.torch_files import rewrite, saved

pytestmark = pytest.mark.slow

REPO = "somebody/torch-moe"
TINY = Path(package.__file__).parent / "tiny"
ROUTING = ("inspect", "--routing", "--max-tokens", "4", "--prompt", "The sea", "--json", "--raw")
RUN = ("The sea", "-n", "8", "--temperature", "0", "--json")


@pytest.fixture(params=[1, 3])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The built-in model as torch.save writes it."""
    return rewrite(TINY, tmp_path / "torch-moe", request.param)


@pytest.fixture
def repo(hub: hub_server.Hub, folder: Path) -> hub_server.Hub:
    for file in folder.iterdir():
        hub.put(f"{REPO}/{file.name}", file.read_bytes())
    return hub


def told(moecli, *arguments):
    result = moecli(*arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def packed_files(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.glob("*.safetensors")}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model packed to q4 from safetensors."""
    return packed(TINY, tmp_path_factory.mktemp("store") / "tiny-q4").folder


def same_facts(ours, theirs):
    keys = ("parameters", "stored_bytes", "stored_format", "stored_parameters", "differences", "experts", "runnable")
    return [ours[key] for key in keys] == [theirs[key] for key in keys]


def test_a_folder(moecli, folder, store, tmp_path):
    assert same_facts(*(told(moecli, "inspect", str(each), "--json") for each in (folder, TINY)))
    assert told(moecli, "memory", str(folder), "--json")["stored_bytes"] == 15_896_064
    assert told(moecli, "run", str(folder), *RUN)["token_ids"] == told(moecli, "run", str(TINY), *RUN)["token_ids"]
    ours, theirs = (told(moecli, *ROUTING, str(each))["routing"] for each in (folder, TINY))
    assert ours["layers"] == theirs["layers"]
    made = tmp_path / "made"
    assert moecli("pack", str(folder), "-o", str(made)).returncode == 0
    assert packed_files(made) == packed_files(store)
    against = "verify", str(made), "--against", str(folder)
    assert moecli("verify", str(made)).returncode == moecli(*against).returncode == 0
    next(folder.glob("*.bin")).write_bytes(b"PK\3\4")
    refused = moecli(*against)
    assert refused.returncode == 1 and "is damaged" in refused.stderr and "hint: " in refused.stderr


def test_a_repository(moecli, repo, folder):
    ours, theirs = (told(moecli, "inspect", name, "--json") for name in (REPO, str(TINY)))
    assert ours["source"] == "hub" and same_facts(ours, theirs)
    assert moecli("memory", REPO).returncode == 0
    dry = told(moecli, "pull", REPO, "--dry-run", "--json")
    assert dry["runnable"] and not dry["doubts"] and any(each["name"].endswith(".bin") for each in dry["files"])
    assert repo.sent_of["config.json"] and sum(repo.sent_of.values()) < 1_500_000  # no weights so far
    snapshot = Path(told(moecli, "pull", REPO, "--json")["path"])
    assert all((snapshot / file.name).read_bytes() == file.read_bytes() for file in folder.iterdir())
    assert told(moecli, "run", REPO, *RUN)["token_ids"] == told(moecli, "run", str(TINY), *RUN)["token_ids"]
    assert moecli("verify", REPO).returncode == 0


def test_packed_on_the_way(moecli, repo, store, tmp_path):
    found = told(moecli, "pull", REPO, "--dtype", "q4", "--json")
    assert packed_files(Path(found["path"])) == packed_files(store)
    assert not list((tmp_path / "hf").rglob("*.bin"))


def test_what_is_no_state_dict_is_refused_before_it_is_fetched(moecli, repo):
    for file in [name for name in repo.files if name.endswith(".bin")]:
        repo.put(file, saved(torch.nn.Linear(2, 3)))
    for command in (("pull", REPO), ("pull", REPO, "--dtype", "q4")):
        result = moecli(*command)
        assert result.returncode == 1 and "names torch.nn.modules.linear.Linear" in result.stderr
        assert "hint: nothing of it was run" in result.stderr
    known = told(moecli, "inspect", REPO, "--json")  # by its config.json
    assert not known["runnable"] and "names torch.nn.modules.linear.Linear" in json.dumps(known["notes"])
    assert moecli("memory", REPO).returncode == 0
