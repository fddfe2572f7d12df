"""Completion in real shells: the first TAB, values, models, files; and what a TAB costs."""

from __future__ import annotations

import os
import pty
import resource
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moecli.cli import completion
from moecli.cli.app import app
from tests.support.waiting import readable

COMPLETIONS = Path(__file__).parents[2] / "completions"


def words(*typed: str) -> list[str]:
    from typer.main import get_command

    return [word for word, _ in completion.candidates(get_command(app), typed)]


def test_every_enumerated_option_offers_its_values(monkeypatch, tmp_path):
    monkeypatch.setenv("MOECLI_HOME", str(tmp_path / "moecli"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    formats = ["fp32", "bf16", "fp16", "q8", "int8", "q4", "nf4", "q3", "mxfp4", "q4_0", "iq4_nl"]
    assert words("run", "tiny", "--dtype", "") == ["auto", *formats]
    assert words("memory", "tiny", "--quant=") == [f"--quant={each}" for each in formats]
    assert words("bench", "tiny", "--policy", "l") == ["lru", "lfu"]
    assert words("run", "--device", "c") == ["cpu", "cuda"]
    assert words("memory", "--gpu", "h") == ["h100", "h200"]
    assert {"csv", "md", "html"} < set(words("inspect", "tiny", "--format", ""))
    assert words("inspect", "tiny", "--by", "") == ["domain"]
    assert words("inspect", "--against", "dtype=q") == ["dtype=q8", "dtype=q4", "dtype=q3", "dtype=q4_0"]
    assert words("completion", "") == ["bash", "zsh", "fish"]
    assert words("help", "v") == words("v") == ["verify"]
    assert words("run", "tiny", "--temper") == ["--temperature"]
    assert words("inspect", "tiny", "mixtral-8x22b-") == ["mixtral-8x22b-base"]  # any number of models
    assert words("run", "tiny", "") == words("run", "--", "--te") == words("nothing", "") == []


def test_rm_offers_what_is_here_and_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setenv("MOECLI_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "models" / "my-moe-q4").mkdir(parents=True)
    for name in ("models--mistralai--Mixtral-8x7B-Instruct-v0.1", "models--some--moe", "datasets--some--set"):
        (tmp_path / "hf" / "hub" / name).mkdir(parents=True)
    here = ["my-moe-q4", "mixtral", "some/moe"]
    assert words("rm", "") == here
    assert words("verify", "") == words("pack", "") == ["tiny", *here]
    assert set(here) < set(words("run", "")) and "dbrx" in words("run", "")


def test_bash_breaks_words_at_equals_and_colons(capsys):
    from typer.main import get_command

    for line, expected in (
        ("moecli run --dtype=n", "nf4"),
        ("moecli inspect tiny --against dtype=n", "nf4"),
        ("moecli run 'mixtral-8x22b-", "mixtral-8x22b-base"),
    ):
        completion.answer(get_command(app), ["bash", line, " \t=:"])
        assert capsys.readouterr().out.split("\t")[0] == expected


@pytest.fixture
def program(environment, command, tmp_path) -> dict[str, str]:
    """The environment of a shell that finds moecli, and has nothing else."""
    script = tmp_path / "bin" / "moecli"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    script.chmod(0o755)
    path = f"{script.parent}:{os.environ['PATH']}"
    return environment | {"PATH": path, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200"}


def type_in(argv: list[str], environment: dict[str, str], typed: list[tuple[str, str]]) -> None:
    """Type into a shell on a terminal; after each text the other must be shown."""
    process, terminal = pty.fork()
    if not process:
        os.execvpe(argv[0], argv, environment)
    try:
        for text, awaited in typed:
            os.write(terminal, text.encode())
            shown, end = "", time.monotonic() + 30
            while awaited not in shown:
                assert time.monotonic() < end, (text, shown)
                if readable(terminal, 1):
                    shown += os.read(terminal, 65536).decode(errors="replace")
    finally:
        os.close(terminal)
        os.waitpid(process, 0)


def shell(name: str) -> str:
    if not (found := shutil.which(name)):
        pytest.skip(f"no {name} here")
    return found


def test_bash(program, tmp_path):
    (tmp_path / "rc").write_text(
        f"source {COMPLETIONS}/moecli.bash; bind 'set enable-bracketed-paste off'; PS1='ready> '\n"
    )
    typed = [("", "ready> "), ("moecli run --dty\t", "--dtype "), ("n\t", "nf4 "), ("mixtral-8x22b-b\t", "-base ")]
    type_in(
        [shell("bash"), "--rcfile", str(tmp_path / "rc"), "-i"],
        program,
        [*typed, ("\x15moecli memory --gpu=h10\t", "0 ")],
    )


def test_zsh_completes_at_the_first_tab_and_shows_what_words_are(program, tmp_path):
    (tmp_path / ".zshrc").write_text(
        f"fpath=({COMPLETIONS} $fpath); autoload -U compinit; compinit -u -D; PS1='ready> '\n"
    )
    typed = [
        ("", "ready> "),
        ("moecli run --dtype n\t", "f4"),
        ("\x15moecli me\t", "mory"),
        ("\x15moecli run tiny --t\t\t", "Sampling temperature"),
    ]
    type_in([shell("zsh"), "-i"], program, typed)


def test_fish(program, tmp_path):
    folder = tmp_path / "fish" / "completions"
    folder.mkdir(parents=True)
    shutil.copy(COMPLETIONS / "moecli.fish", folder)
    (tmp_path / "notes.txt").touch()
    asked = "; ".join(
        f"complete -C 'moecli {each}'" for each in ("run --dtype n", "run mixtral-8x22b-", "run tiny -f notes")
    )
    found = subprocess.run(
        [shell("fish"), "-c", asked], env=program | {"XDG_CONFIG_HOME": str(tmp_path)}, cwd=tmp_path,
        capture_output=True, encoding="utf-8", timeout=120,
    ).stdout  # fmt: skip
    assert found.splitlines() == ["nf4", "mixtral-8x22b-base\tmistralai/Mixtral-8x22B-v0.1", "notes.txt"]


def test_a_tab_is_quick(moecli, tmp_path):
    """Processor time, the least of three, with the byte code that an installed program has."""
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path / "compiled")}
    spent = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "mixtral" in moecli("__complete", "zsh", "run", "mixt", **compiled).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent[1:]) < 0.3, spent
