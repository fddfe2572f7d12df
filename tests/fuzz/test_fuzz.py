"""A short run of every target; `make fuzz` is the long one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.slow
ALONE = ("decoders", "blocks", "heads")  # readers alone, of files that the commands of others read


def test_a_few_hundred_cases_find_nothing():
    targets = [word for name in TARGETS if name not in ALONE for word in ("--target", name)]
    command = [sys.executable, "-m", "tests.fuzz", "--cases", "750", "--jobs", "1", *targets]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    rows = [row.split("|") for row in ended.stdout.splitlines()[2:]]
    assert len(rows) == 11 and all(int(row[3]) > 0 and int(row[4]) > 0 for row in rows), ended.stdout
