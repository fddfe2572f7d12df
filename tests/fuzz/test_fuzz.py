"""A short run of every target; `make fuzz` is the long one."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def test_a_few_hundred_cases_find_nothing():
    command = [sys.executable, "-m", "tests.fuzz", "--cases", "750", "--jobs", "1"]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    rows = [row.split("|") for row in ended.stdout.splitlines()[2:]]
    assert len(rows) == 11 and all(int(row[3]) > 0 and int(row[4]) > 0 for row in rows), ended.stdout
