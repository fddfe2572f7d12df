"""Newcomers at a shell on a terminal of 80 columns: what each types, is asked and answers, and where it ends."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shlex
import shutil
import struct
import sys
import termios
import time
from collections.abc import Iterator
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import moecli
from moecli.checkpoint.stored import ITEM_SIZES
from moecli.model import catalog
from tests.support import headers, hub_server
from tests.support.waiting import readable

README = Path(__file__).parents[2] / "README.md"
GPT_OSS = "openai/gpt-oss-20b"
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r")


class Shell:
    """bash on a terminal of 80 columns; `type` waits for the end of a command and answers what it asks."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        process, self._terminal = pty.fork()
        if not process:
            os.chdir(folder)
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)
        self._process = process
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._until("ready> ")

    def type(self, line: str, answer: str | None = None) -> tuple[int, str]:
        """The status of a command and what the terminal showed of it; `answer` is typed at its [Y/n]."""
        self._write(f"{line}\n")
        shown = ""
        if answer is not None:
            shown = self._until("[Y/n] ", "ready> ")
            assert shown.endswith("[Y/n] "), shown
            self._write(f"{answer}\n")
        shown += self._until("ready> ")
        self._write("echo =$?=\n")
        status = int(re.findall(r"=(\d+)=", self._until("ready> "))[-1])
        return status, CONTROL.sub("", shown)

    def _write(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def _until(self, *awaited: str) -> str:
        shown, end = b"", time.monotonic() + 40
        while not shown.endswith(tuple(map(str.encode, awaited))):
            assert time.monotonic() < end, (awaited, shown.decode(errors="replace"))
            if readable(self._terminal, 1):
                shown += os.read(self._terminal, 65536)
        return shown.decode()

    def close(self) -> None:
        os.close(self._terminal)  # and bash goes
        os.waitpid(self._process, 0)


@pytest.fixture
def replicas(hub: hub_server.Hub, tmp_path: Path) -> hub_server.Hub:
    """Mixtral and gpt-oss with the headers and sizes as published, their weights holes; a small granite that runs."""
    mixtral, gpt_oss, granite = map(catalog.find, ("mixtral", "gpt-oss-20b", "granite-3.1-1b-a400m"))
    assert mixtral and mixtral.repo and gpt_oss and granite and granite.repo
    hub.add(mixtral.repo, mixtral.config(), *headers.split(headers.plain(headers.mixtral()), 19))
    hub.add(GPT_OSS, gpt_oss.config(), *headers.split(headers.gpt_oss(), 3))
    tokenizer = Path(moecli.__file__).with_name("tiny") / "tokenizer.json"
    for repo in (mixtral.repo, GPT_OSS, granite.repo):
        hub.put(f"{repo}/tokenizer.json", tokenizer.read_bytes())
    for copy in ("original/model.safetensors", "metal/model.bin"):  # the same weights twice more
        hub.files[f"{GPT_OSS}/{copy}"] = hub_server.File(b"", 13_761_264_768)
    shape = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 4096}
    config = granite.config() | shape
    chance = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(size, generator=chance) / 8 for name, size in headers.granite(config).items()}
    hub.put(f"{granite.repo}/config.json", json.dumps(config).encode())
    hub.put(f"{granite.repo}/model.safetensors", save({name: value.bfloat16() for name, value in weights.items()}))
    return hub


@pytest.fixture
def shell(environment, command, tmp_path, replicas) -> Iterator[Shell]:
    """With moecli on the path, colours as anybody has them, and the Hub of the replicas."""
    if not shutil.which("bash"):
        pytest.skip("no bash here")
    script = tmp_path / "bin" / "moecli"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    script.chmod(0o755)
    more = {"PATH": f"{script.parent}:{os.environ['PATH']}", "TERM": "xterm", "PS1": "ready> "}
    own = {name: value for name, value in environment.items() if name not in ("COLUMNS", "NO_COLOR")}
    running = Shell(own | more | {"PYTHONPATH": os.pathsep.join(sys.path), "HISTFILE": ""}, tmp_path)
    try:
        yield running
    finally:
        running.close()


def test_someone_with_a_laptop_reads_what_mixtral_takes_declines_and_runs_a_small_model(shell, replicas, tmp_path):
    status, screen = shell.type('moecli run mixtral "Why is the sky blue?" --ram 16GiB', answer="n")
    assert status == 1 and replicas.sent < 50e6
    if shutil.disk_usage(tmp_path).free > 40 << 30:
        question = " ".join(screen.split()).partition("Download")[2].partition("[Y/n]")[0]
        assert all(fact in question for fact in ("87.0 GiB", "keep 23.6 GiB (q4)", "of 256 experts", "tokens/s")), (
            screen
        )
        assert "moecli pull mixtral --dtype q4" in screen
    (command,) = re.findall(r'`(moecli run granite\S*) "', README.read_text(encoding="utf-8"))
    assert command.endswith(":q4")
    run = f'{command} "The sky" -n 8 --temperature 0'
    status, screen = shell.type(run, answer="y")
    assert status == 0 and "tokens/s" in screen and "(q4)" in screen, screen
    assert (tmp_path / "moecli/models/granite-3.1-1b-a400m-q4/manifest.json").is_file()
    assert not list(tmp_path.glob("hf/**/*.safetensors"))  # what was packed is not kept twice
    before = len(replicas.seen)
    status, again = shell.type(run)
    assert status == 0 and "[Y/n]" not in again and len(replicas.seen) == before
    assert "granite-3.1-1b-a400m-q4 *" in shell.type("moecli list")[1]


def test_someone_who_wants_gpt_oss_sees_what_it_takes_and_another_why_not(shell, replicas):
    published = sum(prod(shape) * ITEM_SIZES[dtype] for dtype, shape in headers.gpt_oss().values())
    assert published == 13_761_264_768
    status, screen = shell.type('moecli run jetmoe-8b "Hello"')
    said = " ".join(screen.split())
    assert status == 1 and "it lacks attention heads as experts" in said and not replicas.seen
    (instead,) = re.findall(r"the nearest model that runs here: (moecli pull \S+(?: --dtype \S+)?)", said)
    assert "cannot run" not in shell.type(f"{instead} --dry-run --offline")[1]
    status, screen = shell.type(f"moecli inspect {GPT_OSS}")
    said = " ".join(screen.split())
    assert status == 0 and "13,761,264,768 bytes (12.8 GiB)" in said and "mostly mxfp4" in said, screen
    assert "The files agree with config.json." in said and "cannot run" not in said
    status, screen = shell.type("moecli pull gpt-oss-20b --dry-run")
    said = " ".join(screen.split())
    assert status == 0 and "3 with weights" in said and "12.8 GiB" in said and "cannot run it" not in said, screen
    assert replicas.sent < 1e6  # headers, not weights


def test_a_researcher_has_a_figure_with_its_numbers_and_where_they_are_from(shell, tmp_path):
    status, screen = shell.type("moecli inspect dbrx --routing")
    assert status == 1 and "best 4 of 16" in screen
    (now,) = re.findall(r"now +(moecli inspect tiny --routing)", screen)
    texts = [{"text": f"The {word} of the sea was written down.", "domain": word} for word in ("history", "colour")]
    (tmp_path / "texts.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in texts))
    status, screen = shell.type(
        f"{now} --dtype bf16 --prompts texts.jsonl --save-trace t.jsonl --format matrix -o m.csv"
    )
    assert status == 0 and "wrote t.jsonl" in screen and "wrote m.csv" in screen, screen
    rows = [line.split(",") for line in (tmp_path / "m.csv").read_text().splitlines()]
    assert len(rows) == 1 + 7 and {len(row) for row in rows} == {1 + 8}
    assert json.loads((tmp_path / "m.csv.json").read_text())["provenance"]["prompts"] == "texts.jsonl"
    status, screen = shell.type('moecli inspect --routing --from t.jsonl -o figure.svg --title ""')
    assert status == 0 and "wrote figure.svg" in screen
    figure = (tmp_path / "figure.svg").read_text()
    assert "moecli inspect" in figure and "prefers-color-scheme" not in figure
    status, screen = shell.type("moecli inspect --routing --from t.jsonl")
    said = " ".join(screen.split())
    assert status == 0 and "domain and prompt cannot be told apart" in said and "specialise" not in said, screen


def test_a_script_that_sizes_machines_is_answered_in_numbers_and_exit_codes(shell, tmp_path):
    status, screen = shell.type("moecli memory mixtral --vram 24")
    assert status == 2 and "24GiB" in screen
    sizes = "moecli memory mixtral dbrx olmoe --dtype q4 --ram 80GiB"
    assert shell.type(f"{sizes} -o sizes.csv")[0] == 0
    rows = [line.split(",") for line in (tmp_path / "sizes.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["model", "mixtral", "dbrx", "olmoe"]
    pick = "import json, sys; print([each['fits'] for each in json.load(sys.stdin)])"
    assert (
        "[True, True, True]" in shell.type(f"{sizes} --json | {shlex.quote(sys.executable)} -c {shlex.quote(pick)}")[1]
    )
    assert shell.type("moecli memory dbrx --dtype q4 --ram 80GiB --check -q && echo it-fits")[1].count("it-fits") == 2
    assert shell.type("moecli memory dbrx --dtype bf16 --ram 80GiB --check -q")[0] == 3
    status, screen = shell.type("moecli run mixtral x --json --offline < /dev/null 2> /dev/null")
    refused = json.loads(CONTROL.sub("", screen).partition("\n")[2].rpartition("}")[0] + "}")
    assert status == 1 and "moecli pull mixtral" in refused["error"]["hint"]
    assert shell.type('moecli run granite-3.1-1b-a400m:q4 "The sky" -n 2 --yes -q < /dev/null > out.txt')[0] == 0
    assert (tmp_path / "out.txt").read_text().strip()  # fetched, packed and run without a question
