"""Copies on a stream of their own, and the memory they come from."""

from __future__ import annotations

import pytest
import torch

from moecli.experts.arena import Arena
from moecli.experts.copies import StreamCopies, copies_for

pytestmark = pytest.mark.gpu

SIZE = 2**24
CARD = torch.device("cuda", 0)


def is_pinned(arena: Arena) -> bool:
    return arena.slot(0).is_pinned()


def filled(count: int) -> Arena:
    arena = Arena(count, SIZE, copied_to=CARD)
    for index in range(count):
        arena.slot(index).copy_(torch.arange(SIZE, dtype=torch.int64).add_(index * 7).to(torch.uint8))
    return arena


def test_an_arena_beside_a_card_is_pinned(card: torch.device) -> None:
    assert is_pinned(Arena(2, SIZE, copied_to=card)) and not is_pinned(Arena(2, SIZE))


def test_arenas_that_come_and_go_are_pinned_again(card: torch.device) -> None:
    """The system gives the same addresses again, and CUDA must have forgotten them."""
    for _ in range(20):
        assert is_pinned(Arena(2, SIZE, copied_to=card))
        assert float(torch.ones(3, device=card).sum()) == 3.0  # no error lies in wait for the next kernel


def test_memory_that_cannot_be_pinned_still_serves(card: torch.device) -> None:
    from moecli.experts import arena as module

    arena = filled(1)
    assert not module._pin(arena._data, card)  # a second time: CUDA refuses
    assert float(torch.ones(3, device=card).sum()) == 3.0


def test_records_go_and_come_back(card: torch.device) -> None:
    """Many exchanges while the device computes with every slot, and the CPU reads what comes back."""
    host, slots = filled(4), Arena(4, SIZE, card)
    copies = copies_for(slots, card)
    assert isinstance(copies, StreamCopies)
    expected = [host.slot(index).clone() for index in range(4)]
    for index in range(4):
        copies.upload(index, host.slot(index), index)
    sums = []
    for turn in range(40):
        slot, other = turn % 4, (turn + 1) % 4
        sums.append((slot, copies.ready(slot).to(torch.int64).sum()))
        copies.used(slot)
        copies.download(slot, host.slot(other), other)  # each goes to where its neighbour came from
        copies.upload(slot, host.slot(other), other)
        copies.wait(other)
        assert torch.equal(host.slot(other), expected[slot])
        host.slot(other).copy_(expected[other])
        copies.upload(slot, host.slot(slot), slot)
        copies.wait(slot)
    for slot, total in sums:
        assert int(total) == int(expected[slot].to(torch.int64).sum())
    copies.synchronize()
    for index in range(4):
        assert torch.equal(copies.ready(index).cpu(), expected[index])


def test_pieces_arrive_before_their_memory_is_used_again(card: torch.device) -> None:
    slots = Arena(1, SIZE, card)
    copies = copies_for(slots, card)
    buffer = torch.empty(SIZE // 16, dtype=torch.uint8)

    def parts():
        for number in range(16):
            yield number * len(buffer), buffer.fill_(number)

    copies.upload_parts(0, parts())
    assert copies.ready(0).cpu().view(16, -1).float().mean(1).tolist() == list(range(16))
