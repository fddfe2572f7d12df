"""What people met who had never seen the program: each scene ends where its person wanted to be."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import moecli as moecli_package
from moecli.model import catalog
from tests.support import headers, hub_server
from tests.support.stores import random_mixtral

MIXTRAL = "mistralai/Mixtral-8x7B-Instruct-v0.1"
GRANITE = "ibm-granite/granite-3.1-1b-a400m-instruct"


@pytest.fixture
def laptop(hub: hub_server.Hub, tmp_path: Path) -> hub_server.Hub:
    """Its Hub holds a Mixtral of a few hundred kB, under the name that everybody types."""
    for file in random_mixtral(tmp_path / "small-mixtral", vocab_size=4096).iterdir():
        hub.put(f"{MIXTRAL}/{file.name}", file.read_bytes())
    return hub


def room(tmp_path: Path, gib: int) -> None:
    if shutil.disk_usage(tmp_path).free < gib << 30:
        pytest.skip(f"the disk has no {gib} GiB free, and is told so")


def test_the_first_line_of_all_ends_in_an_answer(on_a_terminal, moecli, laptop, tmp_path):
    """Asked once, with all that decides; packed on the way in the format that runs here; then answered."""
    room(tmp_path, 40)
    run = ("run", "mixtral", "Why is the sky blue?", "-n", "4", "--temperature", "0", "--ram", "16GiB")
    status, output, shown = on_a_terminal(*run, typed="n\n")
    assert status == 1 and not output and "hint: moecli pull mixtral --dtype q4" in shown
    assert not any(name.endswith(".safetensors") and count > 1e5 for name, count in laptop.sent_of.items())
    status, output, shown = on_a_terminal(*run, typed="\n")
    assert status == 0 and output, shown
    question = " ".join(shown[shown.index("Download ") : shown.index("[Y/n]")].split())
    assert all(word in question for word in ("keep", "q4", "run it", "tokens/s"))
    for fact in ("to fetch", "store", "disk", "memory", "speed"):
        assert shown.index(fact) < shown.index("[Y/n]")
    assert (tmp_path / "moecli/models/mixtral-q4/manifest.json").is_file()
    assert not (tmp_path / "hf").exists()  # nothing of the original is kept
    before = len(laptop.seen)
    assert moecli(*run).stdout == output and len(laptop.seen) == before


def test_a_pipe_gets_the_command_that_works_here(moecli, hub):
    for arguments, hint in (
        (("run", "mixtral", "x", "--ram", "16GiB"), "moecli pull mixtral --dtype q4"),
        (("run", "mixtral", "x", "--ram", "100GiB"), "moecli pull mixtral"),
        (("bench", "olmoe", "--ram", "2GiB", "--ctx", "512"), "moecli pull olmoe --dtype q4"),
    ):
        result = moecli(*arguments)
        assert result.returncode == 1 and "is not on this machine" in result.stderr
        assert hint in result.stderr.splitlines()[-1], result.stderr
    assert not hub.seen


@pytest.mark.parametrize(
    ("name", "reason"),
    [("jetmoe-8b", "attention heads as experts"), ("glam", "no weights")],
)
def test_what_cannot_run_is_refused_before_anything_is_fetched(on_a_terminal, hub, name, reason):
    status, output, shown = on_a_terminal("run", name, "x", typed="y\n")
    assert (status, output) == (1, "") and reason in shown and not hub.seen
    assert "the nearest model that runs here: moecli pull " in shown


def test_the_same_is_said_wherever_it_is_asked(moecli):
    screen = moecli("memory", "jetmoe-8b", "--ram", "16GiB", "--ctx", "200000").stdout
    assert "beyond the 4,096" in " ".join(screen.split())
    assert "this version cannot run" in screen and "best here" not in screen and "next         moecli pull " in screen
    known = {each["name"]: each for each in json.loads(moecli("list", "--known", "--json").stdout)}
    assert known["grok-1"]["runnable"] and not known["jetmoe-8b"]["runnable"] and known["mixtral"]["runnable"]
    dry = moecli("pull", "jetmoe-8b", "--dry-run", HF_HUB_OFFLINE="1")
    assert dry.returncode == 0 and "cannot run it" in dry.stdout and "tokens/s" not in dry.stdout


def test_memory_says_how_a_laptop_runs_it(moecli):
    screen = moecli("memory", "mixtral", "--ram", "16GiB").stdout
    rows = {line.split()[0]: line for line in screen.splitlines() if line.split()}
    assert "yes, from disk" in rows["q4"] and "2.39 GiB" in rows["q4"]
    assert (
        "moecli doctor" in " ".join(screen.split())
        and "q4" in rows["best"]
        and "moecli pull mixtral --dtype q4" in rows["next"]
    )
    found = json.loads(moecli("memory", "mixtral", "--ram", "64GiB", "--json").stdout)
    assert found["recommended"]["dtype"] == "q8" and found["recommended"]["command"] == "moecli pull mixtral --dtype q8"
    assert [each["fits_here"] for each in found["formats"]] == ["disk"] * 3 + ["ram"] * 5
    assert moecli("memory", "olmoe", "--ram", "8GiB", "--check").returncode == 0  # in q4, as the table says
    assert moecli("memory", "mixtral", "--ram", "64GiB", "--max-ctx").stdout == "32768\n"


def test_several_models_and_gpus_in_one_table(moecli):
    screen = moecli("memory", "mixtral", "granite-3.1-1b-a400m", "glam", "--ram", "16GiB").stdout
    assert [line.split()[:2] for line in screen.splitlines()[1:4]] == [
        ["mixtral", "q4"], ["granite-3.1-1b-a400m", "bf16"], ["glam-64b-64e", "q3"],
    ]  # fmt: skip
    assert max(map(len, screen.splitlines())) <= 80
    documents = json.loads(moecli("memory", "mixtral", "olmoe", "--ram", "16GiB", "--json").stdout)
    assert [each["model"] for each in documents] == ["mixtral", "olmoe"]
    assert "rtx4090" in moecli("memory", "--gpu", "list").stdout


def test_a_router_is_shown_without_its_weights(moecli, hub, tmp_path):
    result = moecli("inspect", "dbrx", "--routing")
    assert result.returncode == 1 and "moecli pull dbrx --dtype q4" in result.stderr and not hub.seen
    for words in ("best 4 of 16", "160 of 640 experts", "fetches 245 GiB", "minutes", "moecli inspect tiny --routing"):
        assert words in " ".join(result.stdout.split()) or (words == "minutes" and "hours" in result.stdout)
    tiny = Path(moecli_package.__file__).with_name("tiny")
    (tmp_path / "own").mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(tiny / name, tmp_path / "own")
    own = moecli("inspect", str(tmp_path / "own/config.json"), "--routing").stdout
    assert " 7,355 tokens" in own and "about 7,355" not in own and "\nthen" not in own  # by its own tokenizer
    refused = json.loads(moecli("inspect", "dbrx", "--routing", "--json").stdout)
    assert refused["error"]["kind"] == "ModelNotFound" and "pull dbrx" in refused["error"]["hint"]


def test_a_dry_run_needs_no_network_and_says_what_does_not_fit(moecli, hub, tmp_path):
    offline = moecli("pull", "mixtral", "--dtype", "q4", "--dry-run", "--json", HF_HUB_OFFLINE="1")
    document = json.loads(offline.stdout)
    assert document["estimated"] and document["download_bytes"] == 2 * 46_702_792_704
    assert offline.returncode == (0 if document["has_room"] else 3)
    hub.add(MIXTRAL, catalog.find("mixtral").config(), headers.plain(headers.mixtral(experts=4096, layers=4)))
    huge = moecli("pull", "mixtral", "--dry-run")
    assert huge.returncode == 3 and "too few" in huge.stdout and "doubt" in huge.stdout


def test_a_dry_run_of_what_only_runs_packed_names_the_command_that_packs(moecli):
    """By the catalog, where the Hub cannot be asked."""
    for more, named in ((), True), (("--dtype", "q4"), False):
        shown = moecli("pull", "qwen3-coder-480b", *more, "--dry-run", HF_HUB_OFFLINE="1").stdout  # 956 GiB
        assert ("moecli pull qwen3-coder-480b --dtype q4" in shown) is named, shown


def test_after_packing_the_list_says_what_a_name_means(moecli):
    assert moecli("pack", "tiny", "--quiet").returncode == 0
    screen = moecli("list").stdout
    assert "tiny-q4 *" in screen and "what 'tiny' means" in screen and "--dtype bf16" in screen
    talk = moecli("run", "tiny", "x", "-n", "1", "--ctx", "4096").stderr
    assert "using tiny-q4" in talk and "beyond the 1,024" in talk  # and a context that is not the model's


def test_bandwidths_that_were_measured_are_remembered(moecli, tmp_path):
    typical = json.loads(moecli("memory", "mixtral", "--ram", "16GiB", "--json").stdout)
    assert typical["speed"]["evidence"] == "typical" and typical["speed"]["middle"] > typical["speed"]["low"]
    moecli("doctor", "--json")
    file = tmp_path / "moecli/bandwidths.json"
    kept = json.loads(file.read_text())
    assert kept["machine"] == os.uname().nodename and kept["ram"] > 1e8
    file.write_text(json.dumps(kept | {"ram": 10e9, "disk": 100e9}))
    again = json.loads(moecli("memory", "mixtral", "--ram", "16GiB", "--json").stdout)
    assert again["speed"]["evidence"] == "measured" and again["speed"]["high"] > typical["speed"]["high"]
