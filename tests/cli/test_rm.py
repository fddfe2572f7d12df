"""`moecli rm`, `verify` and what `list` says of revisions, over the Hugging Face cache."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import huggingface_hub
import pytest

import moecli as package
from tests.support import hub_server
from tests.support.hub_server import Fault

REPO = "somebody/some-moe"
TINY = Path(package.__file__).parent / "tiny"
OLD, NEW = hub_server.COMMIT, "f" * 40
TEXTS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
# As few weights as the 100,000 bytes below could hold: fewer bytes would look quantised, and pull would read a header.
SMALL = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 64}
CONFIG = json.dumps(json.loads((TINY / "config.json").read_text()) | SMALL).encode()


@pytest.fixture
def hub(hub: hub_server.Hub) -> hub_server.Hub:
    """It holds a small model."""
    hub.put(f"{REPO}/config.json", CONFIG)
    for name in TEXTS:
        hub.put(f"{REPO}/{name}", (TINY / name).read_bytes())
    hub.put(f"{REPO}/model.safetensors", bytes(100_000))
    return hub


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "hf/hub/models--somebody--some-moe"


@pytest.fixture
def two_revisions(moecli, hub):
    """Both pulled; only the weights differ."""
    assert moecli("pull", REPO).returncode == 0
    hub.commit = NEW
    hub.put(f"{REPO}/model.safetensors", bytes(99_999) + b"1")
    assert moecli("pull", REPO).returncode == 0


def occupied(root: Path) -> int:
    return sum(file.lstat().st_size for file in root.rglob("*") if file.is_file() and not file.is_symlink())


def test_everything_goes_and_the_sum_is_right(moecli, two_revisions, root):
    size = sum(file.stat().st_size for file in (root / "blobs").iterdir())
    document = json.loads(moecli("rm", REPO, "--yes", "--json").stdout)
    assert document["source"] == REPO and sorted(document["revisions"]) == [OLD, NEW]
    assert size <= document["freed_bytes"] <= size + 100 and document["kept_bytes"] == 0
    assert not root.exists() and not (root.parents[0] / ".locks" / root.name).exists()
    assert [model["name"] for model in json.loads(moecli("list", "--json").stdout)] == ["tiny"]
    again = moecli("rm", REPO, "--yes")
    assert again.returncode == 1 and "is not on this machine" in again.stderr


def test_one_revision_leaves_what_the_other_shares(moecli, two_revisions, root):
    before = occupied(root)
    document = json.loads(moecli("rm", f"{REPO}@{OLD}", "--yes", "--json").stdout)
    assert document["revisions"] == [OLD] and document["freed_bytes"] == 100_000 == before - occupied(root)
    assert document["kept_bytes"] == len(CONFIG) + sum((TINY / name).stat().st_size for name in TEXTS)
    assert moecli("verify", REPO).returncode == 0
    (repo,) = huggingface_hub.scan_cache_dir(root.parent).repos
    assert [revision.commit_hash for revision in repo.revisions] == [NEW]


def test_the_revision_main_names(moecli, two_revisions, root):
    result = moecli("rm", f"{REPO}@main", "--yes")
    assert result.returncode == 0 and "97.7 KiB freed" in result.stderr and "share stay" in result.stderr
    assert [folder.name for folder in (root / "snapshots").iterdir()] == [OLD] and not (root / "refs/main").exists()
    assert moecli("rm", f"{REPO}@v9", "--yes").returncode == 1
    moecli("rm", f"{REPO}@{OLD}", "--yes")
    assert not root.exists()  # the last one takes the folder along


def test_without_a_terminal_it_takes_yes(moecli, two_revisions, root):
    result = moecli("rm", REPO)
    assert result.returncode == 2 and "--yes" in result.stderr and root.exists()


@pytest.mark.parametrize("model", ["tiny", "glam", "mixtral", "./here"])
def test_what_was_not_pulled_is_left_alone(moecli, model, tmp_path):
    result = moecli("rm", model, "--yes")
    assert result.returncode == 1 and result.stderr.startswith("error: ") and TINY.is_dir()


def test_a_download_under_way_is_not_pulled_from_under(moecli, start, environment, hub, root):
    environment["HF_HUB_DOWNLOAD_TIMEOUT"] = "120"
    hub.faults["model.safetensors"] = [Fault(pace=(10_000, 0), gate=(gate := threading.Event()))]
    process = start("pull", REPO, "--quiet")
    while not list(root.glob("blobs/*.incomplete")):
        assert process.poll() is None
    result = moecli("rm", REPO, "--yes")
    assert result.returncode == 1 and "is being downloaded right now" in result.stderr
    gate.set()
    assert process.wait(60) == 0 and moecli("verify", REPO).returncode == 0


def test_an_unfinished_download_is_listed_and_can_go(moecli, hub, root):
    hub.faults["model.safetensors"] = [Fault(cut=40_000), *[Fault(status=404)] * 9]
    assert moecli("pull", REPO).returncode == 1
    (_, model) = json.loads(moecli("list", "--json").stdout)
    assert model["name"] == REPO and not model["complete"] and model["partial_bytes"] == 40_000
    assert "not complete" in moecli("list").stdout
    assert json.loads(moecli("rm", REPO, "--yes", "--json").stdout)["freed_bytes"] > 40_000
    assert not root.exists()


def test_list_knows_revisions_and_last_use(moecli, two_revisions, root):
    (_, model) = json.loads(moecli("list", "--json").stdout)
    assert model.keys() >= {"name", "format", "bytes", "path", "source", "revision"}
    assert model["revision"] == NEW and sorted(model["revisions"]) == [OLD, NEW] and model["partial_bytes"] == 0
    assert model["bytes"] == sum(file.stat().st_size for file in (root / "blobs").iterdir())
    assert model["last_used"][:2] == "20" and model["last_used"].endswith("+00:00")
    line = next(line for line in moecli("list").stdout.splitlines() if line.startswith(REPO))
    assert "ffffffffffff (of 2)" in line and "today" in line and len(line) <= 80


def test_verify_finds_a_changed_bit_and_pull_repairs_it(moecli, hub, root):
    moecli("pull", REPO)
    good = moecli("verify", REPO)
    assert good.returncode == 0 and "5 files" in good.stdout
    blob = (root / "snapshots" / OLD / "model.safetensors").resolve()
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + b"\1")
    config = (root / "snapshots" / OLD / "config.json").resolve()
    config.unlink()
    bad = moecli("verify", REPO, "--json")
    document = json.loads(bad.stdout)
    assert bad.returncode == 3 and not document["intact"] and blob.exists()
    problems = {file["name"]: file["problem"] for file in document["files"] if file["problem"]}
    assert problems.keys() == {"model.safetensors", "config.json", ""}
    removed = moecli("verify", REPO, "--remove")
    assert removed.returncode == 3 and "model.safetensors: its bytes" in removed.stdout and not blob.exists()
    assert moecli("pull", REPO).returncode == 0 and moecli("verify", REPO).returncode == 0
    assert blob.read_bytes() == data and hub.sent_of["tokenizer.json"] == (TINY / "tokenizer.json").stat().st_size


def test_verify_agrees_with_the_library(moecli, hub, root):
    huggingface_hub.snapshot_download(REPO, cache_dir=root.parent, endpoint=hub.url)
    assert moecli("verify", REPO).returncode == 0
    assert moecli("verify", "tiny").returncode == 1 and moecli("verify", "mixtral").returncode == 1


def test_no_command_here_asks_the_network(moecli, two_revisions, hub):
    before = len(hub.seen)
    for arguments in (("list",), ("verify", REPO), ("rm", f"{REPO}@{OLD}", "--yes"), ("rm", REPO, "--yes")):
        assert moecli(*arguments).returncode == 0
    assert len(hub.seen) == before
