"""Arenas beside a GPU: what is locked for its copies is unlocked again. The CUDA runtime is a fake."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from moecli.experts.arena import CPU, Arena

CARD = torch.device("cuda", 0)


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Sizes by address of what is locked now. More than a mebibyte is refused."""
    found: dict[int, int] = {}

    def register(address: int, size: int, flags: int) -> int:
        if address in found or size > 2**20:
            return 1
        found[address] = size
        return 0

    runtime = SimpleNamespace(
        cudaHostRegister=register, cudaHostUnregister=found.pop, cudaError=SimpleNamespace(success=0)
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    return found


def test_memory_is_locked_as_long_as_its_arena_lives(locked: dict[int, int]) -> None:
    arena = Arena(3, 4096, copied_to=CARD)
    assert locked == {arena.slot(0).data_ptr(): 3 * 4096}
    del arena
    assert not locked


def test_only_what_a_device_copies_is_locked(locked: dict[int, int]) -> None:
    arenas = Arena(3, 4096), Arena(3, 4096, copied_to=CPU), Arena(0, 4096, copied_to=CARD)
    assert len(arenas) == 3 and not locked


def test_a_refusal_is_not_left_to_the_next_kernel(locked: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA keeps an error that nobody asked for until a kernel is launched, and torch raises it there."""
    launched = []

    def launch(*size: int, device: torch.device) -> None:
        launched.append(device)
        raise RuntimeError("CUDA error: part or all of the requested memory range is already mapped")

    monkeypatch.setattr(torch, "zeros", launch)
    arena = Arena(2, 2**20, copied_to=CARD)
    assert launched == [CARD] and not locked
    arena.slot(1).fill_(7)
    assert arena.slot(1).sum() == 7 * 2**20
