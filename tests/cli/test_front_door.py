"""A MODEL is resolved once per command, and what was found then is not looked for again."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import moecli as package
from moecli.model import catalog
from tests.support import headers

TINY = Path(package.__file__).parent / "tiny"

_COUNTING = """
import os, sys
stores = os.path.join(os.environ["MOECLI_HOME"], "models")
listed = []
sys.addaudithook(lambda event, args: event in ("os.listdir", "os.scandir") and listed.append(str(args[0])))
from moecli.library import resolve as front_door
found, calls = front_door._find, []
front_door._find = lambda *args: calls.append(args) or found(*args)
from moecli.cli.app import main
sys.argv = ["moecli", *sys.argv[1:]]
try:
    main()
finally:
    print("calls", len(calls), "listings", listed.count(stores), file=sys.stderr)
"""


@pytest.fixture
def counted(environment):
    """Run a command; how often a MODEL was resolved, and how often the packed models were listed."""

    def run(*arguments: str) -> tuple[int, int]:
        done = subprocess.run(
            [sys.executable, "-c", _COUNTING, *arguments],
            env=environment, capture_output=True, encoding="utf-8", stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode in (0, 3), done.stderr  # 3: bench on a busy machine
        words = done.stderr.splitlines()[-1].split()
        return int(words[1]), int(words[3])

    return run


@pytest.mark.parametrize(
    ("arguments", "models"),
    [
        (["run", "tiny", "x", "-n", "2"], 1),
        (["run", "tiny", "x", "-n", "2", "--dtype", "q4"], 1),
        (["bench", "tiny", "-n", "2", "--prompt-tokens", "4", "--repeat", "1", "--ctx", "64"], 1),
        (["memory", "mixtral"], 1),
        (["inspect", "mixtral"], 1),
        (["inspect", "tiny", "dbrx", "--json"], 2),
        (["inspect", "tiny", "--routing", "--prompt", "a b c", "--json"], 1),
        (["pack", "tiny", "--dtype", "q8"], 1),
    ],
)
def test_a_command_resolves_each_model_once(counted, arguments, models):
    calls, listings = counted(*arguments)
    assert (calls, listings <= models) == (models, True)


def test_packed_models_too(counted, moecli, tmp_path: Path):
    assert moecli("pack", "tiny", "--dtype", "q4").returncode == 0
    folder = tmp_path / "moecli" / "models" / "tiny-q4"
    assert counted("run", "tiny", "x", "-n", "2") == (1, 1)
    assert counted("run", str(folder), "x", "-n", "2") == (1, 0)
    assert counted("inspect", "tiny-q4") == (1, 1)
    assert counted("verify", "tiny-q4") == (1, 1)
    assert counted("verify", "tiny-q4", "--against", "tiny")[0] == 2
    assert counted("rm", "tiny-q4", "--yes") == (1, 1)
    assert not folder.exists()


def test_a_pull_and_a_trace(counted, moecli, hub, tmp_path: Path):
    hub.add("somebody/some-mixtral", catalog.find("mixtral").config(), headers.plain(headers.mixtral()))
    assert counted("pull", "somebody/some-mixtral", "--dry-run") == (1, 0)
    trace = tmp_path / "a.trace"
    assert counted("inspect", "tiny", "--routing", "--prompt", "a b", "--save-trace", str(trace), "--json") == (1, 1)
    assert counted("inspect", "tiny", "--routing", "--from", str(trace), "--json") == (1, 1)


def test_a_packed_model_goes_by_its_own_name_before_all_else(moecli, environment, tmp_path: Path):
    """For those who delete and verify: finished or not, with any sign in its name, whatever lies in the folder."""
    models, desk = tmp_path / "moecli" / "models", tmp_path / "desk"
    shutil.copytree(TINY, desk / "my@model")
    assert moecli("pack", str(desk / "my@model"), "--dtype", "q4", "--quiet").returncode == 0
    shutil.copytree(models / "my@model-q4", models / "half-q4.partial")
    shutil.copytree(models / "my@model-q4", desk / "my@model-q4")
    command = [sys.executable, "-m", "moecli"]

    def at_the_desk(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *arguments], cwd=desk, env=environment, capture_output=True, text=True)

    assert at_the_desk("verify", "my@model-q4", "--quiet").returncode == 0
    assert "is not finished" in at_the_desk("verify", "half-q4.partial").stderr
    assert "no model is called" in at_the_desk("pack", "nosuch.partial").stderr
    assert at_the_desk("rm", "half-q4.partial", "--yes").returncode == 0
    shutil.rmtree(desk / "my@model")
    gone = at_the_desk("run", str(desk / "my@model"), "x", "-n", "1", "--quiet")
    assert gone.returncode == 0, gone.stderr
    assert at_the_desk("rm", "my@model-q4", "--yes").returncode == 0
    assert not list(models.iterdir()) and (desk / "my@model-q4").is_dir()
