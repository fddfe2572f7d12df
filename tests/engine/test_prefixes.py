"""Caches that are used again: which, how much of them, and that no bit of an answer tells."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moecli.engine.decoder import Decoder
from moecli.engine.prefixes import Reading, Slot, Slots, cuts
from moecli.kernels.blocking import STATE_STEP
from tests.support.checkpoints import make, prompt, write
from tests.support.running import load

BLOCK = 16


@pytest.mark.parametrize(
    ("length", "ends"),
    [
        (1, [1]), (16, [16]), (17, [17]), (24, [24]), (25, [16, 25]), (32, [16, 32]), (40, [16, 40]),
        (41, [16, 32, 41]),
    ],
)  # fmt: skip
def test_a_rest_that_would_be_a_decode_step_joins_the_piece_before(length: int, ends: list[int]) -> None:
    assert cuts(length, Reading(BLOCK, BLOCK)) == ends


def read(slots: Slots, decoder: Decoder, ids: list[int]) -> tuple[Slot, torch.Tensor, int]:
    """Take a slot and read a prompt as the engine does: the slot, the logits after the prompt, and what was cached."""
    found = slots.take(ids)
    assert found is not None
    slot, ends = found
    cached = len(slot.ids)
    for end in ends:
        piece = ids[len(slot.ids) : end]
        states = decoder.forward(torch.tensor(piece), slot.cache, last_only=True)
        slots.read(slot, piece)
    return slot, decoder.logits(states[-1:])[0], cached


def grow(decoder: Decoder, slot: Slot, count: int) -> list[int]:
    """So many tokens more, as an answer adds them."""
    added = []
    for token in prompt(count, seed=9):
        decoder.forward(torch.tensor([token]), slot.cache)
        slot.ids.append(token)
        added.append(token)
    return added


def new_slots(decoder: Decoder, count: int = 2) -> Slots:
    return Slots([decoder.new_cache(256, 256) for _ in range(count)], Reading(BLOCK, BLOCK))


@pytest.mark.parametrize(
    ("family", "dtype", "changes"),
    [
        ("mixtral", "bf16", {}), ("mixtral", "q8", {}), ("mixtral", "bf16", {"sliding_window": 24}),
        ("deepseek_v3", "fp32", {}), ("deepseek_v3", "bf16", {}),
    ],
)  # fmt: skip
def test_no_bit_tells_what_was_cached(family: str, dtype: str, changes: dict[str, object], tmp_path: Path) -> None:
    """A turn after an answer, a copy for another conversation, and the first one once more."""
    decoder = load(write(make(family, **changes), tmp_path), dtype)
    slots = new_slots(decoder)
    history = prompt(75)
    slot, first, cached = read(slots, decoder, history)
    assert cached == 0
    answer = grow(decoder, slot, 5)
    branch = [*history[:40], *prompt(30, seed=4)]
    other, forked, copied = read(slots, decoder, branch)  # while the first is taken
    assert other is not slot and copied == 32
    slots.give_back(slot)
    slots.give_back(other)
    turn = [*history, *answer, *prompt(12, seed=5)]
    slot, second, reused = read(slots, decoder, turn)
    assert reused == 64
    slots.give_back(slot)
    for ids, logits in ((history, first), (branch, forked), (turn, second)):
        assert torch.equal(read(new_slots(decoder), decoder, ids)[1], logits)


@pytest.mark.parametrize("family", ["lfm2_moe", "nemotron_h", "qwen3_next"])
def test_states_are_gone_back_to_where_blocks_end(family: str, tmp_path: Path) -> None:
    """As above; a block that ends where no state was kept is read again, in the pieces of a prompt that is new."""
    decoder = load(write(make(family), tmp_path), "bf16")
    history = prompt(210)
    branch = [*history[:150], *prompt(40, seed=4)]
    for block, copied, reused in ((STATE_STEP, 128, 192), (48, 0, 192)):
        slots = Slots([decoder.new_cache(256, 256) for _ in range(2)], Reading(block, block))
        slot, *_ = read(slots, decoder, history)
        answer = grow(decoder, slot, 5)
        other, forked, cached = read(slots, decoder, branch)
        assert cached == copied
        slots.give_back(slot)
        slots.give_back(other)
        turn = [*history, *answer, *prompt(12, seed=5)]
        _, second, cached = read(slots, decoder, turn)
        assert cached == reused
        for ids, logits in ((branch, forked), (turn, second)):
            fresh = Slots([decoder.new_cache(256, 256)], Reading(block, block))
            assert torch.equal(read(fresh, decoder, ids)[1], logits)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load(write(make("mixtral"), tmp_path_factory.mktemp("mixtral")))


def test_what_is_used_least_goes_first(decoder: Decoder) -> None:
    slots = new_slots(decoder)
    first, *_ = read(slots, decoder, prompt(42, seed=1))
    second, *_ = read(slots, decoder, prompt(42, seed=2))
    assert slots.take(prompt(42, seed=3)) is None  # all are taken
    slots.give_back(first)
    slots.give_back(second)
    third, _, cached = read(slots, decoder, prompt(42, seed=3))
    assert third is first and cached == 0
    slots.give_back(third)
    assert read(slots, decoder, prompt(42, seed=2))[2] == 32  # it is still there


def test_a_long_text_is_not_given_up_for_a_short_beginning(decoder: Decoder) -> None:
    slots = new_slots(decoder)
    slot, *_ = read(slots, decoder, prompt(200))
    slots.give_back(slot)
    short, _, cached = read(slots, decoder, prompt(200)[:45])
    assert short is not slot and cached == 32 and slot.whole == 176  # a rest of 8 was read with the block before
    slots.give_back(short)
    again, _, cached = read(slots, decoder, prompt(200))
    assert again is slot and cached == 176


def test_a_torn_cache_is_read_anew(decoder: Decoder) -> None:
    slots = new_slots(decoder, 1)
    slot, logits, _ = read(slots, decoder, prompt(60))
    slot.clear()
    slots.give_back(slot)
    _, anew, cached = read(slots, decoder, prompt(60))
    assert cached == 0 and torch.equal(anew, logits)
