"""The installed program as a real process."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import hub_server

Run = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever starts the program is slow."""
    for item in items:
        if "environment" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def command() -> list[str]:
    """How to start moecli: its entry point, in this interpreter."""
    return [sys.executable, "-c", "from moecli.cli.app import main; main()"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An empty home and Hugging Face cache, no colour, one compute thread."""
    return os.environ | {
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path / "hf"),
        "MOECLI_HOME": str(tmp_path / "moecli"),
        "MOECLI_THREADS": "1",
        "NO_COLOR": "1",
        "COLUMNS": "80",
    }


@pytest.fixture
def moecli(command: list[str], environment: dict[str, str]) -> Run:
    """Run moecli to its end; stdin is empty unless `input` is given."""

    def run(*arguments: str, input: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments],
            input=input,
            capture_output=True,
            encoding="utf-8",
            env=environment | more,
            timeout=120,
        )

    return run


@pytest.fixture
def least_ram(moecli: Run) -> Callable[..., str]:
    """The smallest --ram with which this run works, as its refusal of less says."""

    def ask(*arguments: str) -> str:
        refusal = moecli("run", *arguments, "--ram", "1MiB").stderr
        return re.findall(r"the smallest budget that works is --ram (\w+)", refusal)[0]

    return ask


@pytest.fixture
def start(command: list[str], environment: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    """Run moecli beside the test."""

    def run(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
            env=environment,
        )  # fmt: skip

    return run


@pytest.fixture
def on_a_terminal(command: list[str], environment: dict[str, str]) -> Callable[..., tuple[int, str, str]]:
    """Run moecli with a terminal for stdin and stderr; returns exit code, stdout and what the terminal showed."""

    def run(*arguments: str, typed: str = "") -> tuple[int, str, str]:
        import pty  # POSIX alone

        leader, follower = pty.openpty()
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=follower, stdout=subprocess.PIPE, stderr=follower, env=environment | {"TERM": "xterm"},
        )  # fmt: skip
        os.close(follower)
        os.write(leader, typed.encode())
        shown = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(leader, 65536):
                shown += part
        os.close(leader)
        assert process.stdout
        output = process.stdout.read().decode()
        return process.wait(60), output, shown.decode()

    return run


@pytest.fixture
def hub(environment: dict[str, str]) -> Iterator[hub_server.Hub]:
    """An empty Hub, the one that moecli asks."""
    with hub_server.serve() as running:
        environment.update(HF_ENDPOINT=running.url, HF_TOKEN="", HF_HUB_DOWNLOAD_TIMEOUT="5")
        yield running


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A folder that holds so many MiB."""
    folder = tmp_path / "small"

    def mount(mebibytes: int) -> Path:
        folder.mkdir()
        mounting = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
        if subprocess.run(mounting, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)
