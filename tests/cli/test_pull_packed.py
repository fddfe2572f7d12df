"""`moecli pull --dtype q4` as a real process: what it prints and leaves, how it is stopped, starved and refused."""

from __future__ import annotations

import contextlib
import json
import random
import re
import signal
import threading
import time
from pathlib import Path

import pytest

import moecli as package
from moecli.model import catalog
from moecli.store.manifest import FILE
from moecli.store.packed import PackedStore
from moecli.store.verify import verify
from tests.support import headers, hub_server
from tests.support.hub_server import Fault
from tests.support.processes import wait_for
from tests.support.stores import contents, deal, packed

REPO = "somebody/some-moe"
TINY = Path(package.__file__).parent / "tiny"
SHARDS = headers.shard_names(5)
QUESTION = ("The sea", "--temperature", "0", "-n", "6")


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model in five shards of about 3 MB; layers go across them."""
    return deal(TINY, tmp_path_factory.mktemp("sharded") / "some-moe", len(SHARDS))


@pytest.fixture
def hub(hub: hub_server.Hub, sharded: Path) -> hub_server.Hub:
    for file in sharded.iterdir():
        hub.put(f"{REPO}/{file.name}", file.read_bytes())
    return hub


@pytest.fixture
def pull(moecli, hub):
    return lambda *arguments, **more: moecli("pull", REPO, "--dtype", "q4", *arguments, **more)


@pytest.fixture
def start(start, hub):
    """Run it beside the test."""
    return lambda *arguments: start("pull", REPO, "--dtype", "q4", *arguments)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "moecli/models/somebody--some-moe-q4"


@pytest.fixture(scope="session")
def whole(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What `pack` makes of the same files, manifest aside."""
    return contents(packed(sharded, tmp_path_factory.mktemp("whole") / "q4").folder, but=FILE)


def is_whole(folder: Path, whole: dict[str, bytes]) -> bool:
    return contents(folder, but=FILE) == whole and verify(folder, lambda done, total: None) == []


def journal(target: Path) -> str:
    with contextlib.suppress(OSError):
        return (target.with_name(target.name + ".partial") / "journal").read_text()
    return ""


def slowed(hub: hub_server.Hub, seconds: float = 0.02) -> None:
    """Each shard, after its header, takes some twelve times so long."""
    for name in SHARDS:
        hub.faults[name] = [Fault(), Fault(pace=(1 << 18, seconds))]


def test_a_model_is_pulled_packed_and_runs(pull, moecli, hub, target, whole, tmp_path):
    result = pull()
    assert (result.returncode, result.stdout) == (0, f"{target}\n")
    assert is_whole(target, whole) and not (tmp_path / "hf").exists()
    assert all(text in result.stderr for text in ("apache-2.0", "5 with weights", "in q4, somebody--some-moe-q4"))
    assert re.search(r"somebody--some-moe-q4: 15\.2 MiB -> [\d.]+ MiB \(\d\d%\) in [\d.]+ s", result.stderr)
    assert "\x1b" not in result.stderr and max(map(len, result.stderr.splitlines())) <= 80
    before = len(hub.seen)
    answer = moecli("run", REPO, *QUESTION)
    assert answer.returncode == 0 and answer.stdout and len(hub.seen) == before  # nobody else asks the network
    again = pull()
    assert again.stdout == f"{target}\n" and "is here already: q4" in again.stderr
    words = moecli("__complete", "zsh", "run", "somebody").stdout.split("\t")
    assert words == ["somebody--some-moe-q4", "packed\n"]


def test_json_quiet_and_a_folder_of_ones_own(pull, hub, target, tmp_path):
    dry = json.loads(pull("--dry-run", "--json").stdout)
    assert not target.parent.exists() and not (tmp_path / "hf").exists()
    elsewhere = tmp_path / "else where"
    document = json.loads(pull("--json", "-o", str(elsewhere)).stdout)
    assert (document["name"], document["dtype"], document["path"]) == ("else where", "q4", str(elsewhere))
    assert document["bytes"] == PackedStore.open(elsewhere).bytes and document["schema_version"] == 1
    assert (document["source"], document["revision"]) == (REPO, hub_server.COMMIT)
    assert document["downloaded_bytes"] == dry["download_bytes"] > document["packed_bytes"] > 15 * 10**6
    assert dry["path"] == str(target) and dry["dtype"] == "q4" and dry["runnable"] and dry["cached_bytes"] < 10**5
    assert dry["bytes"] < document["bytes"] < dry["bytes"] + 10**6  # the small files
    assert dry["bytes"] + 6 * 10**6 < dry["disk_bytes"] < dry["bytes"] + 25 * 10**6
    quiet = pull("--quiet", "-o", str(elsewhere))
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, f"{elsewhere}\n", "")
    assert json.loads(pull("--dry-run", "--json", "-o", str(elsewhere)).stdout)["download_bytes"] == 0
    done = json.loads(pull("--json", "-o", str(elsewhere)).stdout)
    assert done["downloaded_bytes"] == done["packed_bytes"] == 0 and done["path"] == str(elsewhere)


def test_a_dry_run_of_mixtral(moecli, hub, tmp_path):
    repo = "mistralai/Mixtral-8x7B-Instruct-v0.1"
    hub.add(repo, catalog.find("mixtral").config(), *headers.split(headers.plain(headers.mixtral()), 19))
    document = json.loads(moecli("pull", "mixtral", "--dtype", "q4", "--dry-run", "--json").stdout)
    assert document["path"].endswith("/models/mixtral-q4") and 93e9 < document["download_bytes"] < 94e9
    assert 25e9 < document["bytes"] < 29e9 and document["bytes"] + 9e9 < document["disk_bytes"] < 40e9
    assert hub.sent < 5e6 and not (tmp_path / "moecli").exists()
    text = moecli("pull", "mixtral", "--dtype", "q4", "--dry-run").stdout
    assert "in q4, mixtral-q4" in text and "needed at most meanwhile" in text
    assert max(map(len, text.splitlines())) <= 80


def test_ctrl_c_stops_at_once_and_the_next_goes_on(start, pull, hub, target, whole):
    slowed(hub)
    hub.faults[SHARDS[-1]] = [Fault(), Fault(cut=1 << 20, stall=60)]
    process = start()
    wait_for(lambda: len(list(target.parent.glob("*.partial/arriving-*5.safetensors.incomplete"))))
    wait_for(lambda: '"kept": ["model' in journal(target))
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (130, "") and time.monotonic() - begin < 2, errors
    assert errors.splitlines()[-1] == "interrupted; the same command goes on from here" and "Traceback" not in errors
    before = hub.sent_of.copy()
    dry = json.loads(pull("--dry-run", "--json").stdout)
    assert dry["download_bytes"] < 13 * 10**6 and dry["cached_bytes"] > 3 * 10**6
    result = pull()
    assert result.returncode == 0 and " earlier" in result.stderr and is_whole(target, whole)
    fetched = {name for name in SHARDS if hub.sent_of[name] - before[name] > 10**6}
    assert 0 < len(fetched) < len(SHARDS)


def test_killed_then_again(start, pull, hub, target, whole):
    slowed(hub)
    process = start()
    wait_for(lambda: journal(target).count("\n") >= 4)
    time.sleep(random.uniform(0, 0.2))
    process.kill()
    process.communicate()
    hub.faults.clear()
    assert not target.exists()
    assert pull().returncode == 0 and is_whole(target, whole)


def test_two_at_once(start, hub, target, whole):
    hub.faults[SHARDS[-1]] = [Fault(), Fault(pace=(1 << 18, 0), gate=(gate := threading.Event()))]
    first = start()
    wait_for(lambda: journal(target))
    second = start()
    _, errors = second.communicate(timeout=60)
    gate.set()
    assert second.returncode == 1 and "another moecli is packing into" in errors and "hint: wait for it" in errors
    assert first.wait(60) == 0 and is_whole(target, whole)
    first.communicate()


def test_what_is_unfinished_is_listed_refused_and_removed(start, moecli, hub, target):
    slowed(hub)
    process = start()
    wait_for(lambda: '"kept": ["model' in journal(target))
    process.kill()
    process.communicate()
    partial = target.with_name(target.name + ".partial")
    assert list(partial.glob("arriving-*"))
    (listed,) = (model for model in json.loads(moecli("list", "--json").stdout) if model["name"] != "tiny")
    assert (listed["name"], listed["complete"], listed["source"]) == (partial.name, False, REPO)
    assert listed["revision"] == hub_server.COMMIT and listed["bytes"] > 3 * 10**6
    assert "(not complete)" in moecli("list").stdout
    result = moecli("verify", str(partial))
    assert result.returncode == 1 and "is not finished" in result.stderr and "hint: " in result.stderr
    assert f"moecli pull {REPO}" in moecli("run", REPO, *QUESTION).stderr
    freed = json.loads(moecli("rm", partial.name, "--yes", "--json").stdout)["freed_bytes"]
    assert freed == listed["bytes"] and not partial.exists()


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "words"),
    [
        ((REPO, "--dtype", "q4"), {"gated": True}, 1, ("is gated", "set HF_TOKEN")),
        ((REPO, "--dtype", "q4"), {"status": 404}, 1, ("knows no model", "spelling")),
        ((f"{REPO}@v9", "--dtype", "q4"), {}, 1, ("has no revision 'v9'",)),
        (("tiny", "--dtype", "q4"), {}, 1, ("on this machine already",)),
        ((REPO, "--dtype", "q2"), {}, 2, ("unknown --dtype 'q2'", "it takes auto")),
        ((REPO, "--keep-original"), {}, 2, ("--keep-original goes with --dtype",)),
        ((REPO, "-o", "x"), {}, 2, ("-o goes with --dtype",)),
        ((REPO, "--dtype", "q4", "-o", "."), {}, 1, ("is not a packed model", "name another folder")),
    ],
)
def test_what_cannot_be_done_is_explained(arguments, settings, code, words, moecli, hub, tmp_path):
    for name, value in settings.items():
        setattr(hub, name, value)
    result = moecli("pull", *arguments)
    assert result.returncode == code and not result.stdout and result.stderr.startswith("error: ")
    assert all(word in result.stderr for word in words) and not (tmp_path / "moecli").exists()


def test_a_terminal_sees_both(on_a_terminal, hub):
    slowed(hub, 0.05)
    status, _, shown = on_a_terminal("pull", REPO, "--dtype", "q4")
    assert status == 0 and all(word in shown for word in ("fetched", "packed", "0001-of-00005", "MiB"))


def test_a_small_disk(start, pull, hub, target, whole, environment, small_disk):
    """The download would fit alone, and so would the store; both do not. Then somebody takes the room meanwhile."""
    small = small_disk(36)
    homes = {"MOECLI_HOME": str(small), "HF_HOME": str(small / "hf")}
    target = small / "models" / target.name
    (small / "other").write_bytes(bytes(12 << 20))
    result = pull(**homes)
    assert result.returncode == 1 and "more on its disk" in result.stderr and not target.parent.exists()
    (small / "other").unlink()
    environment.update(homes)
    slowed(hub, 0.05)
    process = start()
    wait_for(lambda: '"kept": ["model' in journal(target))
    with (small / "other").open("wb", buffering=0) as other, contextlib.suppress(OSError):
        while other.write(bytes(1 << 16)):
            pass
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and " full" in errors and "goes on" in errors and not target.exists()
    (small / "other").unlink()
    assert pull().returncode == 0 and is_whole(target, whole)
