"""Compute threads beside other programs: fewer while they are busy, as many as asked for where they were asked for."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from moecli.engine.team import Team

PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROCESSORS < 2, reason="one processor is shared by one thread")]


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@contextlib.contextmanager
def busy_programs() -> Iterator[None]:
    """One for each processor, for a minute at most."""
    code = "import time\nend = time.time() + 60\nwhile time.time() < end: pass"
    programs = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(PROCESSORS)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def work(team: Team, until: int, seconds: float) -> bool:
    """Whether the team comes to so few threads while one of them computes."""
    end = time.perf_counter() + seconds
    while torch.get_num_threads() > until and time.perf_counter() < end:
        team.adjust()
    return torch.get_num_threads() <= until


def test_it_makes_room_for_others_and_tells():
    team = Team(PROCESSORS)
    assert torch.get_num_threads() == team.fewest == PROCESSORS
    with busy_programs():
        assert work(team, PROCESSORS - 1, 30)
    assert 1 <= team.fewest < PROCESSORS
    team.begin()
    assert team.fewest == torch.get_num_threads()


def test_threads_that_were_asked_for_stay():
    team = Team(PROCESSORS, adjusts=False)
    with busy_programs():
        assert not work(team, PROCESSORS - 1, 1.5)
    assert team.fewest == torch.get_num_threads() == PROCESSORS
