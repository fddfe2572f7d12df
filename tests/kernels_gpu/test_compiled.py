"""Every kernel is compiled for cards that are not there: it spills nothing, and its shared memory is there to be had.

In processes of their own, since this one interprets kernels; `python -m benchmarks.gpu_compile` shows the table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_compile import CARDS, REGISTERS, launched

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="needs no card, and takes minutes of one"),
]

# Outside the home that each test has, so that kernels that did not change are compiled once.
ROOT = Path(__file__).parents[2]
CACHE = os.environ.get("TRITON_CACHE_DIR") or str(Path.home() / ".triton" / "cache")
SMALL = """
import torch, triton, triton.language as tl
from benchmarks.gpu_compile import compiled, noting

@triton.jit
def twice(x, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, at < count) * 2, at < count)

@triton.jit
def too_much_at_once(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    first, second = tl.load(x + at), tl.load(x + BLOCK + at)
    tl.store(out + at, first * second)
    tl.store(out + BLOCK + at, tl.cumsum(first, 0) + second)

x = torch.empty(2**16, device="meta")
with noting(86) as launches:
    assert twice[(512,)](x, x, 2**16, 128) is None
    twice[(512,)](x, x, 2**15, 128)
    twice[(512,)](x, x, 2**15 + 1, 128, num_warps=8)
    too_much_at_once[(1,)](x, x, 2**15)
for each in launches.values():
    found = compiled(each, 86)
    print(each.function.__name__, found.warps, found.registers, found.spilled, found.shared)
"""


def alone(*arguments: str) -> list[str]:
    """What a process says that compiles kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": CACHE, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_is_noted_and_measured(tmp_path: Path) -> None:
    """Each specialisation once: a count that is a multiple of 16 is another kernel than one that is not."""
    (script := tmp_path / "small.py").write_text(SMALL)
    found = [line.split() for line in alone(str(script))]
    assert [line[:2] for line in found] == [["twice", "4"], ["twice", "8"], ["too_much_at_once", "4"]]
    for name, _, registers, spilled, shared in found:
        assert 0 < int(registers) <= REGISTERS
        assert (int(spilled) > 0) == (int(shared) > 0) == (name == "too_much_at_once")


@pytest.mark.parametrize("arch", CARDS)
def test_every_kernel_fits_every_card(arch: int) -> None:
    _, card = CARDS[arch]
    found: list[dict[str, Any]] = [
        json.loads(line) for line in alone("-m", "benchmarks.gpu_compile", "--json", "--arch", str(arch))
    ]
    for each in found:
        assert 0 < each["registers"] <= REGISTERS and each["instructions"] > 0, each
        assert each["spilled"] == 0, each
        assert each["shared"] <= card.shared, each
    assert {each["use"].partition(":")[0] for each in found} == launched(), "a kernel that no call launches"
