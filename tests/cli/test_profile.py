"""MOECLI_PROFILE: a table on stderr of where the time went, the same answer, and nothing without it."""

from __future__ import annotations

import pytest

QUESTION = ("The sea", "--temperature", "0", "-n", "4", "--quiet")
PARTS = ("attention", "router", "experts", "waiting", "other", "all")


@pytest.fixture
def packed(moecli):
    assert moecli("pack", "tiny", "--dtype", "q4", "--quiet").returncode == 0
    return "tiny-q4"


def figures(line: str) -> list[float]:
    return [float(word) for word in line.split()[1:] if word != "%"]


def check(table: list[str], layers: int) -> None:
    """Parts add up to the whole in both phases, layers to the parts of decode steps."""
    rows = {line.split()[0]: figures(line) for line in table[2:8]}
    assert tuple(rows) == PARTS
    for column in (0, 2):
        assert sum(rows[part][column] for part in PARTS[:-1]) == pytest.approx(rows["all"][column], abs=0.01)
        assert all(rows[part][column] > 0 for part in ("attention", "router", "experts", "all"))
        assert rows["all"][column + 1] == 100
    assert table[8].split()[:5] == ["layer", "attention", "router", "experts", "waiting"]
    by_layer = [figures(line) for line in table[9 : 9 + layers]]
    for place, part in enumerate(PARTS[:4]):
        assert sum(row[place] for row in by_layer) == pytest.approx(rows[part][2], abs=0.02)


def test_a_decode_step_that_is_one_call_is_taken_apart_and_says_so(moecli, packed):
    plain = moecli("run", packed, *QUESTION)
    profiled = moecli("run", packed, *QUESTION, MOECLI_PROFILE="1")
    assert profiled.stdout == plain.stdout and plain.stderr == ""
    lines = profiled.stderr.splitlines()
    check(lines, 7)
    assert "each is a single native call" in lines[-1] and len(lines) == 17


def test_streamed_experts_are_waited_for(moecli, packed, least_ram):
    ram = least_ram(packed, *QUESTION)
    profiled = moecli("run", packed, *QUESTION, "--ram", ram, MOECLI_PROFILE="1")
    lines = profiled.stderr.splitlines()
    check(lines, 7)
    assert figures(lines[5])[0] > 0 and "single native call" not in lines[-1]
