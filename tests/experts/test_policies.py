"""Slots and policies on hand-written traces, on drawn ones, and on those of the built-in model."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecli.experts.policies import DEFAULT, POLICIES, Lfu, Lru, Slots
from tests.support.traces import Choices, drifting, recorded, uniform


def one(*experts: int) -> dict[int, int]:
    return dict.fromkeys(experts, 1)


def hit_rate(chosen: Choices, capacity: int, policy: str) -> float:
    slots = Slots(capacity, POLICIES[policy].new())
    return sum(len(slots.access(one(*row), 1).hits) for row in chosen.tolist()) / chosen.size


def test_misses_take_free_slots_and_are_then_found() -> None:
    slots = Slots(3, Lru())
    assert slots.access(one(5, 2), 1).misses == [(2, 0), (5, 1)]
    access = slots.access(one(5, 7), 1)
    assert access.hits == [(5, 1)]
    assert access.misses == [(7, 2)]


def test_lru_gives_up_the_oldest() -> None:
    slots = Slots(2, Lru())
    for expert in (1, 2, 1):
        slots.access(one(expert), 1)
    assert slots.access(one(3), 1).misses == [(3, 1)]
    assert 1 in slots
    assert 2 not in slots


def test_lfu_lets_a_rarer_expert_pass_by() -> None:
    slots = Slots(1, Lfu())
    for _ in range(3):
        slots.access(one(1), 1)
    assert slots.access(one(2), 1).misses == [(2, None)]
    slots.access(one(2), 1)
    assert slots.access(one(2), 1).misses == [(2, 0)], "worth as much now"


def test_lfu_is_worth_the_number_of_uses() -> None:
    policy = Lfu()
    policy.used({1: 3, 2: 1}, 4)
    policy.used(one(1), 1)
    assert [policy.value(expert) for expert in range(3)] == [0, 4, 1]


def test_what_a_pass_asks_for_is_never_evicted_by_it() -> None:
    slots = Slots(2, Lru())
    slots.access(one(0, 1), 1)
    access = slots.access(one(0, 1, 2, 3), 1)
    assert access.hits == [(0, 0), (1, 1)]
    assert access.misses == [(2, None), (3, None)]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_prompt_keeps_its_most_used_experts(policy: str) -> None:
    slots = Slots(2, POLICIES[policy].new())
    slots.access({0: 1, 1: 9, 2: 5, 3: 2}, 10)
    assert (1 in slots, 2 in slots, len(slots)) == (True, True, 2)


@pytest.mark.parametrize("policy", POLICIES)
def test_fewer_slots_than_one_token_takes_still_hit(policy: str) -> None:
    """A cycle through all experts defeats a global LRU; slots of a layer's own keep what repeats."""
    chosen = drifting(16, 4, 400, skew=0.5, stickiness=1, domains=1)
    assert 0.05 < hit_rate(chosen, 2, policy) < 0.5


def test_no_slots_at_all() -> None:
    access = Slots(0, Lru()).access(one(1, 2), 1)
    assert access.hits == []
    assert access.misses == [(1, None), (2, None)]


def test_a_forgotten_slot_is_free_and_claims_nothing() -> None:
    slots = Slots(2, Lru())
    slots.access(one(1, 2), 1)
    slots.forget(1)
    slots.forget(9)
    assert slots.access(one(1), 1).misses == [(1, 0)]


passes = st.lists(st.dictionaries(st.integers(0, 11), st.integers(1, 20), min_size=1), max_size=30)


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@given(passes=passes, capacity=st.integers(0, 12), seed=st.integers(0, 9))
def test_slots_are_never_shared_lost_or_left_empty(
    policy: str, passes: list[dict[int, int]], capacity: int, seed: int
) -> None:
    slots, twin = (Slots(capacity, POLICIES[policy].new()) for _ in range(2))
    fails = random.Random(seed)
    held: dict[int, int] = {}  # slot -> expert: what the arena would hold
    for counts in passes:
        access = slots.access(counts, max(counts.values()))
        assert access == twin.access(dict(reversed(counts.items())), max(counts.values())), "order of asking matters"
        assert sorted(expert for expert, _ in (*access.hits, *access.misses)) == sorted(counts)
        assert all(held[slot] == expert for expert, slot in access.hits)
        before = set(access.hits)
        for expert, slot in access.misses:
            if slot is not None:
                assert 0 <= slot < capacity
                assert all(slot != kept for _, kept in before)
                before.add((expert, slot))
                held[slot] = expert
                if fails.random() < 0.2:
                    del held[slot]
                    slots.forget(expert)
                    twin.forget(expert)
        assert {expert for expert in range(12) if expert in slots} == set(held.values())
        assert len(slots) == len(held)


def test_a_long_text_neither_overflows_nor_forgets_the_order() -> None:
    policy = POLICIES[DEFAULT].new()
    for _ in range(200):
        policy.used({0: 700, 1: 300, 2: 1}, 1000)
        policy.used(one(1), 1)
    assert policy.value(1) > policy.value(0) > policy.value(2) > policy.value(3) == 0


@pytest.fixture(scope="module")
def traces() -> dict[str, tuple[int, Choices]]:
    """Experts and choices: Mixtral-like and larger models over two and three domains, and the built-in model."""
    drawn = {
        "8/2 like a first layer": (8, drifting(8, 2, 4800, skew=0.2, stickiness=0.1, domains=3)),
        "8/2 like a middle layer": (8, drifting(8, 2, 2400, skew=0.2, stickiness=1.2, domains=3)),
        "64/8": (64, drifting(64, 8, 1800, skew=0.6, stickiness=0.6, domains=2)),
        "128/8 skewed": (128, drifting(128, 8, 1800, skew=0.9, stickiness=0.3, domains=3)),
        "256/8": (256, drifting(256, 8, 1500, skew=0.5, stickiness=1, domains=3)),
    }
    layers, _, _ = recorded()
    return drawn | {f"built-in, layer {layer}": (8, chosen) for layer, chosen in enumerate(layers) if layer % 2 == 0}


def test_the_drawn_repetition_is_the_published_one(traces: dict[str, tuple[int, Choices]]) -> None:
    """Mixtral repeats its first choice for 14 to 28 % of tokens."""
    for name, least, most in (("8/2 like a first layer", 0.13, 0.16), ("8/2 like a middle layer", 0.24, 0.30)):
        first = traces[name][1][:, 0]
        assert least < (first[1:] == first[:-1]).mean() < most


@pytest.mark.slow
def test_the_default_is_at_least_as_good_as_the_classics_on_each_trace(
    traces: dict[str, tuple[int, Choices]],
) -> None:
    total: Counter[str] = Counter()
    worse = []
    for name, (experts, chosen) in traces.items():
        for capacity in (experts // 4, experts // 2):
            rates = {policy: hit_rate(chosen, capacity, policy) for policy in POLICIES}
            total.update(rates)
            best = max(rates["lru"], rates["lfu"])
            if rates[DEFAULT] < best:
                worse.append((name, capacity, rates))
    assert not worse
    assert total[DEFAULT] > max(total["lru"], total["lfu"]) * 1.04


def test_where_nothing_ever_changes_the_default_loses_next_to_nothing() -> None:
    chosen = drifting(8, 2, 2400, skew=0.8, stickiness=0, domains=1)
    for capacity in (2, 4):
        assert hit_rate(chosen, capacity, DEFAULT) > hit_rate(chosen, capacity, "lfu") - 0.02


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_can_be_won_from_a_uniform_router(policy: str) -> None:
    assert hit_rate(uniform(16, 2, 4000), 4, policy) == pytest.approx(4 / 16, abs=0.02)


def plainly(passes: list[tuple[dict[int, int], int]]) -> list[float]:
    """What `adaptive` gives each of four experts, with every rate faded token by token, as its docstring says."""
    half_lives, shares = (0.25, 32, 4096), [1 / 3] * 3
    uses, totals = [[0.0] * 4 for _ in half_lives], [0.0] * 3
    for counts, tokens in passes:
        if tokens == 1 and totals[0]:
            foretold = [[uses[scale][e] / totals[scale] * old for scale, old in enumerate(shares)] for e in counts]
            known = [parts for parts in foretold if any(parts)]
            parts = [sum(each[scale] / sum(each) for each in known) for scale in range(3)]
            shares = [s + 0.05 * (part / len(known) - s) if known else s for s, part in zip(shares, parts, strict=True)]
        for scale, half_life in enumerate(half_lives):
            for _ in range(tokens):
                fade = 0.5 ** (1 / half_life)
                uses[scale] = [each * fade for each in uses[scale]]
                totals[scale] = totals[scale] * fade + 1
                for expert, count in counts.items():
                    uses[scale][expert] += count / tokens
    return [sum(shares[s] * uses[s][e] / totals[s] for s in range(3)) for e in range(4)]


@pytest.mark.parametrize(
    "passes",
    [
        [({0: 1}, 1)], [({0: 1, 2: 1}, 1), ({0: 1, 1: 1}, 1), ({2: 1, 1: 1}, 1)], [({0: 7, 1: 3, 2: 10}, 10)],
        [({0: 7, 1: 3, 2: 10}, 10), ({1: 1}, 1), ({1: 1, 3: 1}, 1), ({0: 2}, 2), ({0: 1, 1: 1}, 1)],
        [({0: 1, 1: 1}, 1), ({2: 1}, 1), ({2: 1, 0: 1}, 1)] * 30, [({0: 500, 3: 100}, 500), ({1: 1}, 1), ({0: 1}, 1)],
    ],
)  # fmt: skip
def test_the_default_is_worth_the_probability_it_says(passes: list[tuple[dict[int, int], int]]) -> None:
    policy = POLICIES[DEFAULT].new()
    for number, (counts, tokens) in enumerate(passes):
        policy.used(counts, tokens)
        expected = plainly(passes[: number + 1])
        assert [policy.value(expert) for expert in range(4)] == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_lru_is_worth_the_last_pass_and_within_it_the_uses() -> None:
    policy = Lru()
    policy.used({1: 3, 2: 1}, 4)
    policy.used({3: 9}, 9)
    assert [policy.value(expert) for expert in range(4)] == [0, 1 + 3 / 5, 1 + 1 / 5, 2 + 9 / 10]
    policy.used(one(2), 1)
    assert policy.value(2) == 3 + 1 / 2
