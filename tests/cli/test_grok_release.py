"""`moecli` and Grok-1's release: a small one with a configuration of its own, and the real one, all holes, without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import moecli as package
from moecli.model import catalog
from tests.support import hub_server
from tests.support.grok_replicas import CONFIG, Grok, real_release, write_hpcai, write_release
from tests.support.hub_server import File
from tests.support.stores import packed

pytestmark = pytest.mark.slow

REPO = "somebody/grok-release"
TOKENIZER = Path(package.__file__).parent / "tiny" / "tokenizer.json"
RUN = ("The sea", "-n", "4", "--temperature", "0", "--raw", "--json")
WORDS = CONFIG | {"vocab_size": 4096, "num_hidden_layers": 2}  # those of the tokenizer


def told(moecli, *arguments):
    result = moecli(*arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def grok() -> Grok:
    return Grok(config=WORDS)


@pytest.fixture
def folder(grok: Grok, tmp_path: Path) -> Path:
    found = write_release(grok, tmp_path / "grok-release")
    (found / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    return found


@pytest.fixture
def repo(hub: hub_server.Hub, folder: Path) -> hub_server.Hub:
    for file in folder.rglob("*"):
        if file.is_file():
            hub.put(f"{REPO}/{file.relative_to(folder)}", file.read_bytes())
    return hub


def test_a_folder(moecli, folder, grok, tmp_path):
    about = told(moecli, "inspect", str(folder), "--json")
    assert about["runnable"] and not about["differences"]
    leaves = (part for leaf in grok.leaves.values() for part in (leaf if isinstance(leaf, tuple) else (leaf,)))
    assert about["stored_bytes"] == sum(part.nbytes for part in leaves)
    other = write_hpcai(grok, tmp_path / "hpcai")
    (other / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    ours, theirs = (told(moecli, "run", str(each), *RUN)["token_ids"] for each in (folder, other))
    assert ours == theirs


def test_pulled_and_run(moecli, repo, folder, tmp_path):
    snapshot = Path(told(moecli, "pull", REPO, "--json")["path"])
    for file in (folder / "ckpt-0").iterdir():
        assert (snapshot / "ckpt-0" / file.name).read_bytes() == file.read_bytes()
    assert told(moecli, "run", REPO, *RUN)["token_ids"] == told(moecli, "run", str(folder), *RUN)["token_ids"]
    assert moecli("verify", REPO).returncode == 0
    again = told(moecli, "pull", REPO, "--offline", "--json")
    assert again["path"] == str(snapshot) and again["downloaded_bytes"] == 0
    (snapshot / "ckpt-0" / "tensor00004_000").unlink()
    assert moecli("verify", REPO).returncode == 3
    missing = moecli("run", REPO, "x")
    assert missing.returncode == 1 and "1 of its 26 weight files are missing" in missing.stderr


def test_packed_file_by_file(moecli, repo, folder, tmp_path):
    """What waits for others is put aside; nothing is left of the release."""
    store = Path(told(moecli, "pull", REPO, "--dtype", "q4", "--json")["path"])
    expected = packed(folder, tmp_path / "expected").folder
    for file in expected.glob("*.safetensors"):
        assert (store / file.name).read_bytes() == file.read_bytes()
    assert not list(tmp_path.rglob("*arriving*")) and not list(tmp_path.rglob("*left-over*"))
    assert told(moecli, "run", REPO, *RUN)["dtype"] == "q4"


def test_the_real_one_by_its_heads(moecli, hub, tmp_path):
    """770 files of 318 GB, their numbers holes: configuration from the catalog, tokenizer from another repository."""
    for name, file in real_release():
        hub.files[f"xai-org/grok-1/{name}"] = File(*file)
    assert sum(file.size for file in hub.files.values()) == 318_239_886_140
    hub.put("xai-org/grok-1/README.md", b"Grok-1")
    hub.put("Xenova/grok-1-tokenizer/tokenizer.json", TOKENIZER.read_bytes())
    result = moecli("pull", "grok-1", "--dtype", "q4", "--dry-run", "--json")
    assert result.returncode in (0, 3), result.stderr  # 3: this disk is too small for it
    dry = json.loads(result.stdout)
    assert dry["source"] == "xai-org/grok-1" and dry["source_bytes"] == 318_239_886_140
    assert dry["runnable"] and not any("tokenizer" in doubt for doubt in dry["doubts"])
    assert sum(size for name, size in hub.sent_of.items() if name.startswith("tensor")) < 10_000_000
    assert catalog.find("xai-org/grok-1") is catalog.find("grok-1")
