"""The command line on a card."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

from moecli.engine.device import choose_device
from moecli.errors import UsageError
from tests.support.in_process import Ended, moecli

pytestmark = pytest.mark.gpu

GREEDY = ("--temperature", "0", "-n", "40", "--dtype", "fp32", "--json")


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("MOECLI_THREADS", "1")


def run(*arguments: str) -> Ended:
    return moecli("run", "tiny", "The sea", *GREEDY, *arguments)


def test_a_device_by_any_of_its_names() -> None:
    expected = run("--device", "cpu").json
    assert expected["device"] == "cpu" and expected["planned_bytes"]["device"] == 0
    for arguments in ((), ("--device", "cuda"), ("--device", "cuda:0", "--vram", "3GiB")):
        all_on_the_card(run(*arguments).json, expected["text"])
    command = [sys.executable, "-m", "moecli", "run", "tiny", "The sea", *GREEDY]
    alone = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=os.environ)
    assert alone.returncode == 0, alone.stderr
    all_on_the_card(json.loads(alone.stdout), expected["text"])


def all_on_the_card(found: Any, text: str) -> None:
    assert found["device"] == "cuda:0" and found["text"] == text
    assert found["planned_bytes"]["device"] > 0
    assert found["expert_cache"]["device_hits"] == found["expert_cache"]["hits"] > 0


def test_a_small_budget() -> None:
    """Too small for a device asked for by name; by itself the CPU takes over; a little more and some experts fit."""
    refused = run("--device", "cuda", "--vram", "200MiB")
    assert refused.code == 1, refused.err
    message = " ".join(refused.err.split())
    assert "on cuda:0 before any expert, and the budget is 200 MiB" in message
    (least,) = re.findall(r"hint: --vram (\w+) ", message)
    alone = run("--vram", "200MiB").json
    assert alone["device"] == "cpu"
    some = run("--device", "cuda", "--vram", least).json
    assert some["device"] == "cuda:0" and some["text"] == alone["text"]
    cache = some["expert_cache"]
    assert cache["device_hits"] < cache["hits"] and cache["misses"] <= 56


def test_a_device_that_is_not_there() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(UsageError, match=f"there are {count} GPUs"):
        choose_device(f"cuda:{count}")
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 0)
    assert run("--device", f"cuda:{count}").code == 2


def test_the_measurement_and_the_examination() -> None:
    bench = moecli("bench", "tiny", "--prompt-tokens", "32", "--max-tokens", "8", "--repeat", "1", "--json", "--yes")
    assert bench.code in (0, 3), bench.err
    assert json.loads(bench.out)["device"] == "cuda:0"
    doctor = moecli("doctor")
    assert torch.cuda.get_device_name(0) in " ".join(doctor.out.split()), doctor.out
