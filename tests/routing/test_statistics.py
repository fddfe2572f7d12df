"""Temporal locality, domains, co-activation, vocabulary and agreement on traces whose answer is known."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecli.errors import MoecliError
from moecli.routing.agreement import agreement
from moecli.routing.coactivation import coactivation, pair_counts
from moecli.routing.domains import divergences, domain_distances
from moecli.routing.temporal_locality import locality_baseline, temporal_locality, uniform_locality
from moecli.routing.trace import LayerTrace, RoutingTrace, bare
from moecli.routing.vocabulary import vocabulary
from tests.support.traces import uniform


def test_the_published_baselines() -> None:
    golden = json.loads((Path(__file__).parent / "golden.json").read_text())["mixtral_table5"]["random"]
    even = uniform_locality(8, 2)
    assert [round(100 * (even.top1 or 0), 2)] * 3 == golden[:3]
    assert [round(100 * (even.any or 0), 2)] * 3 == golden[3:]
    assert even.overlap == 0.25


@pytest.mark.parametrize("stay", [0.0, 0.15, 0.5])
def test_the_temporal_locality_of_a_markov_chain_is_recovered(stay: float) -> None:
    random = np.random.default_rng(1)
    first = random.integers(0, 8, 20_000)
    for token in np.flatnonzero(random.random(len(first)) < stay):
        first[token] = first[token - 1] if token else first[token]
    chosen = np.stack([first, (first + random.integers(1, 8, len(first))) % 8], 1).astype(np.uint16)
    measured = temporal_locality(LayerTrace(0, 8, chosen), np.ones(len(first) - 1, bool))
    assert measured.top1 == pytest.approx(stay + (1 - stay) / 8, abs=0.012)


def test_a_uniform_router_repeats_as_often_as_its_baseline_says() -> None:
    layer = LayerTrace(0, 16, uniform(16, 4, 8000))
    follows = np.ones(7999, bool)
    measured, expected = temporal_locality(layer, follows), locality_baseline(layer, 7999)
    for name in ("top1", "any", "overlap"):
        mean, limit = getattr(expected.uniform, name), getattr(expected.limit, name)
        assert abs(getattr(measured, name) - mean) < 2.5 * (limit - mean) / 1.645
    assert expected.top1_by_load == pytest.approx(1 / 16, rel=0.02)


@given(st.lists(st.tuples(st.integers(0, 2), st.permutations(range(5))), min_size=1, max_size=20))
def test_temporal_locality_never_crosses_prompts(tokens: list[tuple[int, list[int]]]) -> None:
    tokens.sort(key=lambda token: token[0])
    chosen = np.array([ranks[:2] for _, ranks in tokens], np.uint16)
    prompts = np.array([prompt for prompt, _ in tokens])
    pairs = [(a, b) for (p, a), (q, b) in pairwise(tokens) if p == q]
    measured = temporal_locality(LayerTrace(0, 5, chosen), prompts[1:] == prompts[:-1])
    if not pairs:
        assert measured.top1 is None
        return
    assert measured.top1 == pytest.approx(sum(a[0] == b[0] for a, b in pairs) / len(pairs))
    assert measured.any == pytest.approx(sum(bool({*a[:2]} & {*b[:2]}) for a, b in pairs) / len(pairs))
    assert measured.overlap == pytest.approx(sum(len({*a[:2]} & {*b[:2]}) for a, b in pairs) / len(pairs) / 2)


def test_the_distance_of_domains() -> None:
    apart = divergences(np.array([[5, 5, 0, 0], [0, 0, 3, 3], [1, 1, 1, 1]]))
    assert apart[0, 1] == pytest.approx(1), "nothing in common: one bit"
    assert np.diag(apart) == pytest.approx(0)
    assert apart[0, 2] == pytest.approx(apart[2, 0]) == pytest.approx(apart[1, 2])


def prompts_of(skews: list[int]) -> np.ndarray:
    """Loads [prompts, 16] of 100 tokens each; prompts of one number have one taste."""
    return np.stack(
        [
            np.bincount(((uniform(16, 4, 100, seed) ** 2 // 16) + taste).ravel() % 16, minlength=16)
            for seed, taste in enumerate(skews)
        ]
    )


def test_prompts_that_differ_are_no_domains_and_domains_are() -> None:
    tastes = np.random.default_rng(0).integers(0, 16, 24).tolist()
    domain = np.arange(24) % 3
    by_lot = domain_distances([prompts_of(tastes)], domain, 3)
    assert by_lot.tested and not by_lot.layers[0].chance.beyond and not by_lot.beyond.any()
    assert by_lot.layers[0].mean == pytest.approx(by_lot.layers[0].chance.mean, rel=0.6)
    true = domain_distances([prompts_of((5 * domain).tolist())], domain, 3)
    assert true.layers[0].chance.beyond and true.beyond.sum() == 6
    assert true.layers[0].mean > 3 * true.layers[0].chance.mean


def test_pairs_are_counted_all_or_by_adjacent_rank() -> None:
    layer = LayerTrace(0, 4, np.array([[0, 1, 2], [2, 0, 1], [3, 1, 0]] * 5, np.uint16))
    assert pair_counts(layer)[0].tolist() == [0, 15, 10, 5]
    assert pair_counts(layer, adjacent_ranks=True)[0].tolist() == [0, 15, 5, 0]
    closest = coactivation(layer, np.zeros(15, np.int64)).top[0]
    assert (closest.expert, closest.other, closest.share, closest.tokens) == (0, 1, 1.0, 15)


def test_pairs_of_a_uniform_router_meet_the_baseline() -> None:
    found = coactivation(LayerTrace(0, 16, uniform(16, 4, 6000)), np.arange(6000) // 300)
    off_diagonal = found.shares[~np.eye(16, dtype=bool)]
    assert off_diagonal.mean() == pytest.approx(found.baseline, rel=0.01)
    assert off_diagonal.max() == pytest.approx(found.limit, rel=0.1)
    assert not any(pair.beyond_chance for pair in found.top)


def test_a_pair_that_goes_together_in_every_prompt_is_called() -> None:
    chosen = uniform(8, 2, 2000)
    chosen[::9] = 3, 6
    found = coactivation(LayerTrace(0, 8, chosen), np.arange(2000) // 200).top
    best = found[0]
    assert {best.expert, best.other} == {3, 6} and best.beyond_chance and best.tokens > 1.5 * (best.expected or 1e9)
    assert not any(pair.beyond_chance for pair in found[1:])
    assert coactivation(LayerTrace(0, 8, chosen), np.arange(2000) // 334).top[0].beyond_chance is None, "six prompts"


def test_an_expert_with_a_favourite_token_is_found() -> None:
    random = np.random.default_rng(0)
    ids = random.integers(0, 20, 2000).astype(np.uint32)
    chosen = uniform(8, 2, 2000)
    chosen[ids == 7] = [3, 5]
    ids[:9] = 999  # too rare to count
    words = vocabulary(LayerTrace(0, 8, chosen), ids, np.zeros(2000, np.int64))
    best = words.favourites[3][0]
    assert (best.id, best.share) == (7, 1.0)
    assert best.lift == pytest.approx(1 / ((chosen == 3).any(1).mean()))
    assert best.occurrences == (ids == 7).sum()
    assert words.ids == 20
    assert 999 not in {word.id for favourites in words.favourites for word in favourites}


def test_without_favourites_the_lift_is_that_of_shuffled_choices() -> None:
    ids = np.random.default_rng(0).integers(0, 50, 3000).astype(np.uint32)
    words = vocabulary(LayerTrace(0, 16, uniform(16, 2, 3000)), ids, np.zeros(3000, np.int64))
    assert words.lift == pytest.approx(words.shuffled_lift, rel=0.15)
    assert vocabulary(LayerTrace(0, 16, uniform(16, 2, 9)), ids[:9], np.zeros(9, np.int64)).lift is None


def test_a_token_of_one_prompt_has_no_taste_of_its_own() -> None:
    """A prompt of its own words with its own experts: shuffled inside the prompt, the lift stays."""
    prompt = np.arange(2000) // 250
    ids = (prompt * 10 + np.arange(2000) % 10).astype(np.uint32)
    chosen = ((uniform(16, 2, 2000) // 8) + prompt[:, None] * 2).astype(np.uint16)
    chosen[:, 1] = (chosen[:, 0] + 1) % 16
    words = vocabulary(LayerTrace(0, 16, chosen), ids, prompt)
    assert words.lift == pytest.approx(words.shuffled_lift, rel=0.1)
    assert (words.lift or 0) > 3


def trace_of(chosen: np.ndarray, ids: list[int]) -> RoutingTrace:
    return replace(bare({0: (8, chosen)}), ids=np.array(ids, np.uint32))


def test_agreement_ends_where_the_texts_part() -> None:
    one = trace_of(np.array([[0, 1], [2, 3], [4, 5], [6, 7]], np.uint16), [1, 2, 3, 4])
    other = trace_of(np.array([[1, 0], [2, 7], [4, 5]], np.uint16), [1, 2, 9])
    found = agreement(one, other)
    assert found.tokens == 2
    layer = found.layers[0]
    assert (layer.equal_sets, layer.equal_first, layer.overlap) == (0.5, 0.5, 0.75)
    assert (layer.equal_sets_by_chance, layer.overlap_by_chance) == (1 / 28, 0.25)
    assert agreement(one, one).equal_sets == agreement(one, one).overlap == 1


def test_two_uniform_routers_agree_by_chance() -> None:
    one, other = (bare({0: (8, uniform(8, 2, 4000, seed))}) for seed in (1, 2))
    layer = agreement(one, other).layers[0]
    assert layer.equal_sets == pytest.approx(layer.equal_sets_by_chance, abs=0.01)
    assert layer.overlap == pytest.approx(layer.overlap_by_chance, abs=0.015)


def test_traces_that_cannot_be_compared_say_why() -> None:
    one = trace_of(np.array([[0, 1]], np.uint16), [1])
    with pytest.raises(MoecliError, match="no token in common"):
        agreement(one, replace(one, ids=np.array([2], np.uint32)))
    with pytest.raises(MoecliError, match="different layers"):
        agreement(one, bare({1: (8, one.layers[0].chosen)}))
