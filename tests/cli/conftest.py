"""The installed program as a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


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
