"""Cache replay: the best possible is best, chance is chance, and a sample says that it is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecli.experts.policies import DEFAULT, POLICIES
from moecli.routing.oracles import Belady
from moecli.routing.replay import REPLAYED, candidates, hit_rate, replay, token_passes, verdict
from moecli.routing.trace import bare
from tests.support.traces import drifting, recorded, uniform

pytestmark = pytest.mark.slow

tokens = st.integers(1, 3).flatmap(
    lambda active: st.lists(st.permutations(range(6)).map(lambda ranks: ranks[:active]), min_size=1, max_size=40)
)


@pytest.mark.slow
@given(rows=tokens, capacity=st.integers(0, 6))
def test_nothing_beats_belady(rows: list[list[int]], capacity: int) -> None:
    passes = token_passes(np.array(rows))
    rates = {name: hit_rate(passes, capacity, new()) for name, new in candidates(passes, 0).items()}
    assert rates["belady"] >= max(rates.values()) - 1e-12


def most_hits(rows: Sequence[Sequence[int]], capacity: int) -> int:
    """By trying every content of the slots that the rules allow."""

    @cache
    def best(place: int, held: frozenset[int]) -> int:
        if place == len(rows):
            return 0
        asked = frozenset(rows[place])
        stay, missing, others = held & asked, asked - held, held - asked
        contents = (
            stay | {*kept} | {*new}
            for kept_count in range(len(others) + 1)
            for kept in combinations(others, kept_count)
            for new_count in range(min(capacity - len(stay) - kept_count, len(missing)) + 1)
            for new in combinations(missing, new_count)
        )
        return len(stay) + max(best(place + 1, frozenset(content)) for content in contents)

    return best(0, frozenset())


@pytest.mark.slow
@given(rows=tokens.map(lambda rows: rows[:9]), capacity=st.integers(1, 4))
def test_belady_is_the_optimum(rows: list[list[int]], capacity: int) -> None:
    passes = token_passes(np.array(rows))
    hits = hit_rate(passes, capacity, Belady(passes)) * sum(map(len, rows))
    assert round(hits) == most_hits(rows, capacity)


@pytest.mark.parametrize("policy", ["random", *POLICIES])
def test_a_uniform_router_gives_chance(policy: str) -> None:
    passes = token_passes(uniform(32, 4, 3000))
    assert hit_rate(passes, 8, candidates(passes, 1)[policy]()) == pytest.approx(8 / 32, abs=0.02)


def test_slots_held_by_lot_give_chance_on_a_skewed_router_too() -> None:
    passes = token_passes(drifting(32, 4, 600, skew=0.8, stickiness=0.5, domains=2))
    rates = [hit_rate(passes, 8, candidates(passes, seed)["random"]()) for seed in range(40)]
    assert np.mean(rates) == pytest.approx(8 / 32, abs=0.04)


def test_all_experts_resident_miss_only_once() -> None:
    passes = token_passes(uniform(8, 2, 500))
    assert hit_rate(passes, 8, candidates(passes, 0)["lru"]()) == (1000 - 8) / 1000


def test_more_slots_never_hurt_the_best() -> None:
    result = replay(bare({0: (32, drifting(32, 4, 500, 0.5, 0.5, 2))}))
    best = result.curve("belady")
    assert list(best) == sorted(best)
    assert [curve.policy for curve in result.curves] == list(REPLAYED)
    assert all(result.curve(policy)[place] <= best[place] for policy in REPLAYED for place in range(len(best)))
    assert not result.sampled


@pytest.mark.slow
def test_the_verdict() -> None:
    told = verdict(replay(bare({0: (32, drifting(32, 4, 800, 0.8, 1, 1))})))
    assert told.pays
    assert told.slots == 16
    assert told.by_chance == 0.5
    assert told.gain > 0.15
    assert told.best_possible >= told.hit_rate
    assert not verdict(replay(bare({0: (32, uniform(32, 4, 800))}))).pays


@pytest.mark.slow
def test_a_sample_says_so_and_is_close() -> None:
    layers, _, _ = recorded()
    trace = bare({number: (8, chosen) for number, chosen in enumerate(layers)})
    whole = replay(trace, most_accesses=10**9, policies=("lru", DEFAULT))
    part = replay(trace, most_accesses=30_000, policies=("lru", DEFAULT))
    assert not whole.sampled
    assert part.sampled
    assert len(part.layers) * part.tokens * len(part.slots) * 2 <= 30_000
    assert part.curve(DEFAULT) == pytest.approx(whole.curve(DEFAULT), abs=0.06)


def test_generated_tokens_are_what_counts() -> None:
    """Prompts are one pass: they fill the slots, and are not counted."""
    chosen = np.array([[0, 1], [0, 2], [0, 1], [0, 1], [5, 6], [3, 4], [3, 4]], np.uint16)
    generated = np.array([False, False, True, True, False, False, True])
    trace = replace(bare({0: (8, chosen)}), generated=generated, prompt=np.array([0, 0, 0, 0, 1, 1, 1], np.uint32))
    result = replay(trace)
    assert result.generated_only
    assert result.tokens == 3
    assert result.curve("lru")[result.slots.index(4)] == 1.0
    assert result.curve("lru")[0] < 1.0


def test_every_domain_is_in_the_sample() -> None:
    chosen = np.repeat(np.array([[0, 1], [4, 5]], np.uint16), [3000, 300], axis=0)
    trace = replace(bare({0: (8, chosen)}), domain=(chosen[:, 0] // 4).astype(np.uint16), domains=("long", "short"))
    pinned = replay(trace, most_accesses=6_000, policies=("pinned", "belady", DEFAULT))
    assert pinned.sampled
    assert pinned.curve("pinned")[pinned.slots.index(2)] < 0.95, "two experts are not all"
