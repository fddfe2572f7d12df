"""Permutations of prompts: every deal once where there are few, honest p-values, verdicts only where they can be."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecli.routing.domains import domain_distances, load_distances, units
from moecli.routing.permutation import (
    LEVEL,
    chance,
    deals,
    discoveries,
    relabelled,
    resampled,
    signs,
    smallest_p,
    supports,
)
from moecli.routing.temporal_locality import locality_chances
from moecli.routing.trace import LayerTrace, bare
from tests.support.traces import uniform


@given(st.lists(st.integers(1, 3), min_size=2, max_size=3).filter(lambda sizes: sum(sizes) < 9))
def test_few_deals_are_all_made_once_the_real_one_first(sizes: list[int]) -> None:
    made = deals(sizes)
    assert made[0].tolist() == np.repeat(np.arange(len(sizes)), sizes).tolist()
    assert len({tuple(row) for row in made.tolist()}) == len(made)
    assert len(made) == math.factorial(sum(sizes)) // math.prod(map(math.factorial, sizes))
    assert all(np.bincount(row, minlength=len(sizes)).tolist() == sizes for row in made)


def test_many_deals_are_drawn() -> None:
    made = deals((20, 20))
    assert len(made) == 1000 and made[0].tolist() == [0] * 20 + [1] * 20
    assert (made.sum(1) == 20).all() and 0.4 < made[1:, 0].mean() < 0.6
    flips = signs(40)
    assert len(flips) == 1000 and (flips[0] == 1).all() and set(np.unique(flips)) == {-1, 1}
    assert sorted(map(tuple, signs(2).tolist())) == [(-1, -1), (-1, 1), (1, -1), (1, 1)]


@pytest.mark.parametrize(
    ("sizes", "ways"),
    [
        ((2, 2), 3),
        ((3, 3), 10),
        ((3, 4), 35),
        ((4, 4), 35),
        ((5, 5), 126),
        ((3, 5), 56),
        ((2, 2, 2), 15),
        ((1, 1, 1), 1),
        ((1, 19), 20),
        ((1, 39), 40),
        ((5,), 1),
    ],
)
def test_the_smallest_p_value_is_one_of_the_number_of_ways(sizes: tuple[int, ...], ways: int) -> None:
    assert smallest_p(sizes) == pytest.approx(1 / ways)
    assert supports(smallest_p(sizes)) == (ways >= 40)


@pytest.mark.parametrize("sizes", [(3, 3), (5, 5), (2, 8), (3, 30), (2, 2, 2), (2, 2, 2, 2)])
def test_no_p_value_is_below_the_smallest(sizes: tuple[int, ...]) -> None:
    """Domains that have nothing in common."""
    domain = np.repeat(np.arange(len(sizes)), sizes)
    counts = np.eye(4, dtype=np.int64)[domain] * 50
    found = domain_distances([counts], domain, len(sizes))
    assert found.layers[0].mean == pytest.approx(1)
    chances = found.layers[0].chance
    assert found.tested == (chances is not None) == supports(smallest_p(sizes))
    if chances is not None:
        assert chances.beyond and chances.p_value >= min(smallest_p(sizes), 1 / 1000) - 1e-9


def test_the_p_value_counts_what_was_measured() -> None:
    values = np.array([3.0, 1, 2, 3, 4])
    assert chance(values).p_value == 3 / 5
    assert chance(values, falls=True).p_value == 4 / 5
    assert chance(np.zeros(100)).p_value == 1


@pytest.mark.parametrize(
    ("p_values", "found"),
    [
        ([0.02], [1]),
        ([0.03], [0]),
        ([0.02, 0.5], [0, 0]),
        ([0.01, 0.5], [1, 0]),
        ([0.025, 0.025], [1, 1]),
        ([], []),
    ],
)
def test_discoveries(p_values: list[float], found: list[int]) -> None:
    assert discoveries(p_values).tolist() == list(map(bool, found))


@pytest.mark.parametrize("prompts", [3, 64, 65, 300])
def test_relabelled_loads_keep_their_size_and_spread(prompts: int) -> None:
    """Beyond 64 prompts the rest is drawn from the normal distribution of the same spread."""
    counts = np.random.default_rng(1).poisson(np.linspace(1, 40, 8), (prompts, 8))
    loads = relabelled(counts)
    assert loads[0].tolist() == counts.sum(0).tolist()
    assert loads.sum(1) == pytest.approx(np.full(len(loads), counts.sum()))
    assert loads[1:].var() == pytest.approx(counts.var(1).sum(), rel=0.15)


@pytest.mark.parametrize("seed", range(3))
def test_an_expert_busy_in_prompt_after_prompt_is_told_from_busy_prompts(seed: int) -> None:
    random = np.random.default_rng(seed)
    busy = np.array([60, 10, 10, 10])
    by_lot = np.stack([random.permutation(busy) for _ in range(30)])
    same = np.stack([busy + random.integers(0, 9, 4) for _ in range(30)])
    assert chance(relabelled(by_lot).max(1)).p_value > LEVEL < chance(resampled(by_lot).max(1)).p_value
    assert chance(relabelled(same).max(1)).p_value <= 0.01 >= chance(resampled(same).max(1)).p_value


def test_a_hundred_prompts_of_two_kinds_are_no_imbalance() -> None:
    """Experts that rise and fall together leave fewer ways to be even; renumbering them would not show it."""
    kinds = np.array([[30, 30, 10, 10], [10, 10, 30, 30]])
    loads = resampled(np.random.default_rng(0).permutation(np.repeat(kinds, 50, axis=0)))
    assert np.corrcoef(loads[1:, 0], loads[1:, 1])[0, 1] == pytest.approx(1)
    assert loads[1:].std(0) == pytest.approx(np.full(4, 100), rel=0.1)


def test_repeats_are_held_against_the_same_prompt_in_random_order() -> None:
    """Prompts that stay with their two experts repeat them, and not by order; runs of tokens do."""
    prompt = np.arange(1200) // 100
    own = (uniform(2, 1, 1200)[:, 0] + prompt * 2) % 16
    runs = np.repeat(np.random.default_rng(0).integers(0, 16, 400), 3)
    follows = prompt[1:] == prompt[:-1]
    for first, beyond in ((own, False), (runs, True)):
        layer = LayerTrace(0, 16, first[:, None].astype(np.uint16))
        found = locality_chances(layer, follows, prompt, 12)
        assert all((each.p_value <= LEVEL) == beyond for each in found.values()), found
        repeated = float((first[1:] == first[:-1])[follows].mean())
        assert (abs(repeated - found["top1"].mean) < 0.05) != beyond
    assert locality_chances(layer, follows, prompt // 2, 6) == {}, "six prompts"


def test_loads_of_two_traces_are_exchanged_prompt_by_prompt() -> None:
    ours = np.random.default_rng(0).poisson(30, (12, 8))
    shifted = ours + np.array([6, 0, 0, 0, 0, 0, 0, -3])
    assert load_distances([ours], [shifted], paired=True)[0].chance.beyond  # type: ignore[union-attr]
    assert not load_distances([ours], [shifted], paired=False)[0].chance.beyond  # type: ignore[union-attr]
    by_lot = np.where(np.arange(12)[:, None] % 2, ours, shifted), np.where(np.arange(12)[:, None] % 2, shifted, ours)
    assert not load_distances([by_lot[0]], [by_lot[1]], paired=True)[0].chance.beyond  # type: ignore[union-attr]
    assert load_distances([ours[:6]], [shifted[:6]], paired=True)[0].chance is None, "32 ways"


def test_prompts_of_one_number_in_two_domains_are_two() -> None:
    trace = bare({0: (4, uniform(4, 1, 6))})
    trace.domain[3:] = 1
    found = units(trace)
    assert found.domain.tolist() == [0, 1] and found.of_token.tolist() == [0, 0, 0, 1, 1, 1]
    assert all(one <= two for one, two in pairwise(found.domain.tolist()))
