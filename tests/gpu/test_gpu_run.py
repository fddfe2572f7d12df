"""The command line on a card."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from moecli.engine.device import choose_device
from moecli.errors import UsageError

pytestmark = pytest.mark.gpu

GREEDY = ("--temperature", "0", "-n", "40", "--dtype", "fp32", "--json")


def moecli(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NO_COLOR": "1", "MOECLI_THREADS": "1"}
    command = [sys.executable, "-m", "moecli", *arguments]
    return subprocess.run(command, input="", capture_output=True, text=True, env=environment)


def document(*arguments: str) -> dict:
    result = moecli("run", "tiny", "The sea", *GREEDY, *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_device_by_any_of_its_names() -> None:
    expected = document("--device", "cpu")
    assert expected["device"] == "cpu" and expected["planned_bytes"]["device"] == 0
    for arguments in ((), ("--device", "cuda"), ("--device", "cuda:0", "--vram", "3GiB")):
        found = document(*arguments)
        assert found["device"] == "cuda:0" and found["text"] == expected["text"], arguments
        assert found["planned_bytes"]["device"] > 0
        assert found["expert_cache"]["device_hits"] == found["expert_cache"]["hits"] > 0


def test_a_small_budget() -> None:
    """Too small for a device asked for by name; by itself the CPU takes over; a little more and some experts fit."""
    refused = moecli("run", "tiny", "The sea", *GREEDY, "--device", "cuda", "--vram", "200MiB")
    assert refused.returncode == 1, refused.stderr
    assert "on cuda:0 before any expert, and the budget is 200 MiB" in refused.stderr.replace("\n", " ")
    least = refused.stderr.partition("hint: --vram ")[2].split()[0]
    alone = document("--vram", "200MiB")
    assert alone["device"] == "cpu"
    some = document("--device", "cuda", "--vram", least)
    assert some["device"] == "cuda:0" and some["text"] == alone["text"]
    cache = some["expert_cache"]
    assert cache["device_hits"] < cache["hits"] and cache["misses"] <= 56


def test_a_device_that_is_not_there() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(UsageError, match=f"there are {count} GPUs"):
        choose_device(f"cuda:{count}")
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 0)
    assert moecli("run", "tiny", "x", "--device", f"cuda:{count}").returncode == 2


def test_the_measurement_and_the_examination() -> None:
    bench = moecli("bench", "tiny", "--prompt-tokens", "32", "--max-tokens", "8", "--repeat", "1", "--json", "--yes")
    assert bench.returncode in (0, 3), bench.stderr
    assert json.loads(bench.stdout)["device"] == "cuda:0"
    doctor = moecli("doctor")
    assert torch.cuda.get_device_name(0) in doctor.stdout.replace("\n", " "), doctor.stdout
