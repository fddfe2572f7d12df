"""Arenas beside a GPU: what is locked for its copies is unlocked again. The CUDA runtime is a fake."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moecli.experts.arena import CPU, Arena

CARD = torch.device("cuda", 0)
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


def flags(address: int) -> list[str]:
    """What Linux says of the pages at an address."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        first, _, last = line.partition(" ")[0].partition("-")
        if last and int(first, 16) <= address < int(last, 16):
            return next(each for each in lines if each.startswith("VmFlags:")).split()
    raise AssertionError("no such pages")


@pytest.mark.skipif(not HUGE_PAGES.is_dir(), reason="needs Linux with huge pages")
def test_slots_are_of_huge_pages_that_no_other_process_shares() -> None:
    arena = Arena(3, 2**21)
    found = flags(arena.slot(1).data_ptr())
    assert "hg" in found and "sh" not in found and "wr" in found


@pytest.mark.parametrize(("count", "size"), [(0, 4096), (3, 0), (1, 1), (3, 4096)])
def test_slots_lie_one_behind_the_other(count: int, size: int) -> None:
    arena = Arena(count, size)
    assert (len(arena), arena.size) == (count, size)
    for index in range(count):
        arena.slot(index).fill_(index + 1)
        assert arena.slot(index).dtype is torch.uint8 and bytes(arena.memory(index)) == bytes([index + 1]) * size
    if count * size > 1:
        arena.memory(1)[:2] = b"ab"
        assert arena.slot(1)[:2].tolist() == [97, 98]
        assert [int(arena.slot(index)[0]) for index in (0, 2)] == [1, 3]
        assert arena.slot(2).data_ptr() == arena.slot(0).data_ptr() + 2 * size
        assert arena.slot(0).data_ptr() % 4096 == 0


def test_slots_of_a_device_are_there() -> None:
    assert Arena(2, 16, torch.device("meta")).device.type == "meta"


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Sizes by address of what is locked now. More than a mebibyte is refused."""
    found: dict[int, int] = {}
    waited: list[torch.device] = []
    current: list[torch.device] = []

    def register(address: int, size: int, flags: int) -> int:
        assert current == [CARD] and flags == 0
        if address in found or size > 2**20:
            return 1
        found[address] = size
        return 0

    def unregister(address: int) -> None:
        assert waited == [CARD], "copies may be on their way"
        del found[address]

    @contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        current.append(chosen)
        yield
        current.pop()

    runtime = SimpleNamespace(
        cudaHostRegister=register, cudaHostUnregister=unregister, cudaError=SimpleNamespace(success=0)
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    return found


def test_memory_is_locked_as_long_as_its_arena_lives(locked: dict[int, int]) -> None:
    arena = Arena(3, 4096, copied_to=CARD)
    assert locked == {arena.slot(0).data_ptr(): 3 * 4096}
    (end,) = [each for each in list(weakref.finalize._registry) if each.peek() and each.peek()[0] is arena]
    assert not end.atexit  # CUDA may be gone by then
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
