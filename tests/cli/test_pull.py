"""`moecli pull`: real processes against a small Hub on this machine, interrupted, killed, doubled and starved."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import threading
import time
from pathlib import Path

import pytest

import moecli as package
from moecli.errors import DiskError
from moecli.hub.download import write_ref
from moecli.hub.manifest import DownloadManifest
from moecli.model import catalog
from tests.support import headers, hub_server
from tests.support.hub_server import Fault
from tests.support.processes import wait_for

REPO = "somebody/some-moe"
TINY = Path(package.__file__).parent / "tiny"
WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(hub: hub_server.Hub) -> hub_server.Hub:
    """It holds the built-in model as somebody's, and what else lies in a repository."""
    for file in TINY.iterdir():
        hub.put(f"{REPO}/{file.name}", file.read_bytes())
    hub.put(f"{REPO}/pytorch_model.bin", b"pickle")
    return hub


@pytest.fixture
def pull(moecli, hub):
    """Run pull to its end."""
    return lambda *arguments, **more: moecli("pull", *arguments, **more)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "hf/hub/models--somebody--some-moe"


def partial_bytes(root: Path) -> int:
    """While a pull goes on, a small file may be finished between being found and being asked."""
    total = 0
    for file in root.glob("blobs/*.incomplete"):
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def is_whole(folder: Path) -> bool:
    return all(
        (folder / file.name).read_bytes() == file.read_bytes() for file in TINY.iterdir() if file.suffix != ".md"
    )


def test_a_model_is_pulled_and_runs(pull, moecli, hub, root):
    result = pull(REPO)
    folder = root / "snapshots" / hub_server.COMMIT
    assert result.returncode == 0 and result.stdout == f"{folder}\n" and is_whole(folder)
    assert all(
        text in result.stderr
        for text in (
            "somebody/some-moe at 0123456789ab",
            "apache-2.0",
            "to fetch",
            "next: moecli run somebody/some-moe",
        )
    )
    assert "\x1b" not in result.stderr and not (folder / "pytorch_model.bin").exists()
    before = len(hub.seen)
    assert moecli("run", REPO, "The sea", "-n", "4").returncode == 0
    assert len(hub.seen) == before  # nobody else asks the network


def test_json_and_quiet(pull, hub, root):
    document = json.loads(pull(REPO, "--json").stdout)
    folder = root / "snapshots" / hub_server.COMMIT
    size = sum(file.stat().st_size for file in TINY.iterdir() if file.suffix != ".md")
    assert document["schema_version"] == 1 and document["name"] == document["source"] == REPO
    assert document["revision"] == hub_server.COMMIT and document["path"] == str(folder)
    assert document["bytes"] == document["downloaded_bytes"] == size == sum(f["bytes"] for f in document["files"])
    again = pull(REPO, "--json")
    assert json.loads(again.stdout)["downloaded_bytes"] == 0 and not again.stderr
    quiet = pull(REPO, "--quiet")
    assert (quiet.stdout, quiet.stderr) == (f"{folder}\n", "")


def test_a_dry_run_of_mixtral_costs_kilobytes(pull, hub, tmp_path):
    repo = "mistralai/Mixtral-8x7B-Instruct-v0.1"
    hub.add(repo, catalog.find("mixtral").config(), *headers.split(headers.plain(headers.mixtral()), 19))
    hub.put(f"{repo}/consolidated.00.pt", b"pickle")
    result = pull("mixtral", "--dry-run", "--json")
    document = json.loads(result.stdout)
    assert document["name"] == "mixtral" and document["source"] == repo and document["license"] == "apache-2.0"
    assert 93.4e9 < document["bytes"] == document["download_bytes"] < 93.5e9 and document["cached_bytes"] == 0
    assert document["dtype"] == "bf16" and document["peak_rss_bytes"] > 93e9 and document["runnable"]
    assert len(document["files"]) == 21 and not any(".pt" in file["name"] for file in document["files"])
    assert hub.sent < 200_000 and not (tmp_path / "hf").exists()
    text = pull("mixtral", "--dry-run").stdout
    assert "87.0 GiB" in text and "19 with weights" in text and max(map(len, text.splitlines())) <= 80


def test_a_quantised_model_is_doubted_before_the_first_byte(pull, hub):
    """Whatever its config.json says or leaves out; a leftover beside plain weights is no doubt."""
    config = catalog.find("mixtral").config()
    codes = headers.split(headers.packed(headers.mixtral(), "fp4"), 3)
    hub.add("somebody/silent", config, *codes)
    hub.add(
        "somebody/leftover", config | {"quantization_config": {"quant_method": "fp8"}}, headers.plain(headers.mixtral())
    )
    document = json.loads(pull("somebody/silent", "--dry-run", "--json").stdout)
    assert not document["runnable"] and document["lacks"] == ["fp4 weights"]
    assert any("fp4 weights" in doubt for doubt in document["doubts"])
    assert "lacks fp4 weights" in pull("somebody/silent", "--dry-run").stdout
    asked = pull("somebody/silent", "--quiet")
    assert asked.returncode == 2 and "fp4 weights" in asked.stderr
    document = json.loads(pull("somebody/leftover", "--dry-run", "--json").stdout)
    assert document["runnable"] and not any("fp8" in doubt for doubt in document["doubts"])
    assert hub.sent < 3_000_000


def test_a_family_nobody_knows_is_refused_before_its_weights(pull, hub, root):
    hub.put(f"{REPO}/config.json", b'{"architectures": ["NovelForCausalLM"], "model_type": "novel"}')
    result = pull(REPO, "--yes")
    assert result.returncode == 1 and "Novel" in result.stderr and not root.exists() and not hub.sent_of[WEIGHTS]


def test_no_room_is_said_before_the_first_byte(pull, hub):
    hub.add("somebody/huge", catalog.find("mixtral").config(), *headers.split(headers.plain(headers.mixtral(320)), 90))
    hub.sizes["model-00001-of-00090.safetensors"] = 2**49
    result = pull("somebody/huge", "--yes")
    assert result.returncode == 1 and "are free in" in result.stderr and "HF_HOME" in result.stderr
    assert not hub.sent_of["model-00001-of-00090.safetensors"]


def test_a_doubt_is_a_question_that_yes_answers(pull, hub, root):
    config = json.loads((TINY / "config.json").read_text()) | {"vocab_size": 2**30}
    hub.put(f"{REPO}/config.json", json.dumps(config).encode())
    result = pull(REPO)
    assert result.returncode == 2 and "--yes" in result.stderr and "of RAM at least" in result.stderr
    assert not root.exists()
    assert pull(REPO, "--yes").returncode == 0 and (root / "refs/main").read_text() == hub_server.COMMIT


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        (REPO, {"gated": True}, ("is gated", f"/{REPO}", "set HF_TOKEN")),
        (REPO, {"status": 401}, ("knows no model", "spelling")),
        (REPO, {"status": 404}, ("knows no model", "spelling")),
        (REPO, {"status": 418}, ("HTTP 418",)),
        ("nobody/nothing", {}, ("the Hub knows no model 'nobody/nothing'", "spelling")),
        (f"{REPO}@v9", {}, ("has no revision 'v9'",)),
        ("tiny", {}, ("on this machine already",)),
        ("glam", {}, ("no weights of",)),
        ("mixtrl", {}, ("did you mean mixtral",)),
    ],
)
def test_a_hub_that_says_no(pull, hub, model, settings, words):
    for name, value in settings.items():
        setattr(hub, name, value)
    result = pull(model)
    assert result.returncode == 1 and not result.stdout and "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ") and all(word in result.stderr for word in words)


def test_a_gate_that_the_token_does_not_open(pull, hub):
    hub.gated = True
    result = pull(REPO, HF_TOKEN="hf_other")
    assert result.returncode == 1 and "HTTP 403" in result.stderr and "with the account of your token" in result.stderr
    assert pull(REPO, HF_TOKEN=hub.token).returncode == 0


def test_no_network(pull, hub):
    result = pull(REPO, HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 1 and "cannot be reached" in result.stderr and "hint: " in result.stderr
    result = pull(REPO, HF_HUB_OFFLINE="1")
    assert result.returncode == 1 and "unset HF_HUB_OFFLINE" in result.stderr and not hub.seen


def test_ctrl_c_stops_at_once_and_the_next_goes_on(start, pull, hub, root):
    hub.faults[WEIGHTS] = [Fault(pace=(1 << 20, 0.1), stall=60)]
    process = start("pull", REPO)
    wait_for(lambda: partial_bytes(root) > 2 << 20)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130 and time.monotonic() - begin < 2 and "Traceback" not in errors
    kept = partial_bytes(root)
    assert kept > 2 << 20
    assert pull(REPO).returncode == 0 and is_whole(root / "snapshots" / hub_server.COMMIT)
    assert hub.requests(WEIGHTS)[1]["range"] == f"bytes={kept}-"


def test_kill_at_any_moment_then_again(start, pull, hub, root):
    chance = random.Random(5)
    for attempt in range(3):
        hub.faults[WEIGHTS] = [Fault(pace=(1 << 19, 0.02))]
        process = start("pull", REPO)
        target = 1 + (attempt * 4 + chance.randrange(4)) * (1 << 20)
        wait_for(lambda least=target: partial_bytes(root) >= least)
        process.kill()
        process.communicate()
        assert not (root / "refs/main").exists()
    hub.faults.clear()
    assert pull(REPO).returncode == 0 and is_whole(root / "snapshots" / hub_server.COMMIT)
    ranges = [int(sent["range"][6:-1]) for sent in hub.requests(WEIGHTS)]
    assert len(ranges) == 4 and ranges == sorted(ranges) and ranges[-1] > 8 << 20


def test_two_pulls_at_once_fetch_everything_once(start, hub, root):
    hub.faults[WEIGHTS] = [Fault(pace=(1 << 20, 0.1))]
    processes = [start("pull", REPO, "--json") for _ in range(2)]
    documents = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert {document["path"] for document in documents} == {str(root / "snapshots" / hub_server.COMMIT)}
    assert is_whole(root / "snapshots" / hub_server.COMMIT) and not partial_bytes(root)
    assert len(hub.requests(WEIGHTS)) == 1 and hub.sent_of[WEIGHTS] == (TINY / WEIGHTS).stat().st_size


def test_a_run_beside_an_update_uses_the_earlier_revision(start, pull, moecli, hub, root, environment):
    environment["HF_HUB_DOWNLOAD_TIMEOUT"] = "120"
    assert pull(REPO).returncode == 0
    hub.commit = "f" * 40
    data = (TINY / WEIGHTS).read_bytes()
    hub.put(f"{REPO}/{WEIGHTS}", data[:-1] + bytes([data[-1] ^ 1]))
    hub.faults[WEIGHTS] = [Fault(pace=(2 << 20, 0), gate=(gate := threading.Event()))]
    process = start("pull", REPO)
    wait_for(lambda: partial_bytes(root) > 1 << 20)
    assert moecli("run", REPO, "The sea", "-n", "4").returncode == 0
    assert process.poll() is None  # still pulling
    gate.set()
    assert process.wait(60) == 0 and (root / "refs/main").read_text() == hub.commit


def test_a_disk_that_fills_up_keeps_what_is_there(pull, hub, small_disk):
    small = small_disk(20)
    (small / "other").write_bytes(bytes(15 << 20))
    result = pull(REPO, HF_HOME=str(small))
    assert result.returncode == 1 and "are free in" in result.stderr and not hub.sent_of[WEIGHTS]
    (small / "other").unlink()
    hub.faults[WEIGHTS] = [Fault(pace=(1 << 20, 0.05))]
    blobs = small / "hub/models--somebody--some-moe"

    def fill() -> None:
        """Somebody else takes the room meanwhile."""
        wait_for(lambda: partial_bytes(blobs) > 1 << 20)
        (small / "other").write_bytes(bytes(10 << 20))

    other = threading.Thread(target=fill)
    other.start()
    result = pull(REPO, HF_HOME=str(small))
    other.join()
    assert (
        result.returncode == 1 and "the disk is full" in result.stderr and "goes on where it stopped" in result.stderr
    )
    kept = partial_bytes(blobs)
    assert kept > 4 << 20 and not list(small.rglob("*.tmp"))
    (small / "other").unlink()
    assert pull(REPO, HF_HOME=str(small)).returncode == 0
    assert hub.requests(WEIGHTS)[-1]["range"] == f"bytes={kept}-"
    assert is_whole(blobs / "snapshots" / hub_server.COMMIT)


def test_a_disk_without_room_for_a_name_keeps_nothing_half_written(small_disk, monkeypatch):
    small = small_disk(1)
    monkeypatch.setenv("HF_HOME", str(small))
    manifest = DownloadManifest(REPO, "main", hub_server.COMMIT, (), (), {}, None, False)
    (manifest.root / "refs").mkdir(parents=True)
    with (small / "other").open("wb", buffering=0) as other, contextlib.suppress(OSError):
        while other.write(bytes(1 << 12)):
            """Until nothing fits."""
    with pytest.raises(DiskError, match="No space left"):
        write_ref(manifest)
    assert not list((manifest.root / "refs").iterdir())
    (small / "other").unlink()
    write_ref(manifest)
    assert (manifest.root / "refs/main").read_text() == hub_server.COMMIT


def test_bars_on_a_terminal(on_a_terminal, hub, root):
    status, output, shown = on_a_terminal("pull", REPO)
    assert status == 0 and output == f"{root / 'snapshots' / hub_server.COMMIT}\n"
    assert all(text in shown for text in ("total", "model.safetensors", "MiB"))
    assert "total" not in on_a_terminal("pull", REPO, "--quiet")[2]


def test_run_offers_to_pull_on_a_terminal(on_a_terminal, moecli, hub):
    run = ("run", REPO, "The sea", "-n", "4", "--temperature", "0")
    status, output, shown = on_a_terminal(*run, "--offline", typed="y\n")
    assert status == 1 and not output and f"moecli pull {REPO}" in shown and not hub.seen
    status, output, shown = on_a_terminal(*run, typed="n\n")
    assert status == 1 and not output and f"moecli pull {REPO}" in shown and not hub.sent_of[WEIGHTS]
    status, output, shown = on_a_terminal(*run, typed="\n")
    assert status == 0 and "Download 15.4 MiB, keep it, run it in RAM" in shown and "is not on" not in shown
    assert output == moecli("run", "tiny", *run[2:]).stdout
    piped = moecli("run", "somebody/other", "The sea")
    assert piped.returncode == 1 and "moecli pull somebody/other" in piped.stderr
