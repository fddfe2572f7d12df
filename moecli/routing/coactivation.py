"""Which experts are taken together: N_ij / N_i, the share of expert i's tokens that also take j."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations

import numpy as np

from moecli.routing.permutation import FEWEST_PROMPTS, LEVEL, runs_for, signs
from moecli.routing.trace import Floats, Integers, LayerTrace

_RUNS = 20
_FEWEST = 10  # tokens of the rarer expert of a pair
_BLOCKS = 64  # prompts beyond these are put together
_NUMBERS = 20_000_000  # pairs of experts by prompts, held at once


@dataclass(frozen=True, slots=True)
class Pair:
    """Two experts that tokens often take together."""

    expert: int
    other: int
    share: float  # of the rarer one's tokens: the larger of N_ij / N_i and N_ij / N_j
    tokens: int
    expected: float | None = None  # tokens, if each prompt's loads paired up at random; None: not tested
    p_value: float | None = None  # among all pairs: how often the furthest of them is as far by chance
    beyond_chance: bool | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Coactivation:
    """One layer's pairs. `baseline` is a uniform router's share, `limit` the highest it shows among all pairs."""

    shares: Floats  # [E, E], row i: N_ij / N_i, 0 on the diagonal
    top: tuple[Pair, ...]
    baseline: float  # (k - 1) / (E - 1)
    limit: float
    adjacent_ranks: bool


def pair_counts(layer: LayerTrace, adjacent_ranks: bool = False) -> Integers:
    """Tokens that take both experts, [E, E], symmetric. `adjacent_ranks` counts only pairs next to each other in
    rank, as a published script does."""
    chosen, experts = layer.chosen.astype(np.int64), layer.experts
    pairs = np.zeros(experts * experts, np.int64)
    for first, second in combinations(range(layer.active), 2):
        if not adjacent_ranks or second == first + 1:
            pairs += np.bincount(chosen[:, first] * experts + chosen[:, second], minlength=experts * experts)
    square = pairs.reshape(experts, experts)
    return np.asarray(square + square.T)


def coactivation(layer: LayerTrace, prompt: Integers, top: int = 5, adjacent_ranks: bool = False) -> Coactivation:
    """All pairs of one layer, and the `top` closest of those whose rarer expert has at least 10 tokens.
    prompt [T]: whose tokens they are, numbered from 0."""
    pairs, counts = pair_counts(layer, adjacent_ranks), layer.counts()
    shares = pairs / np.maximum(counts, 1)[:, None]
    often = np.where(np.minimum.outer(counts, counts) >= _FEWEST, np.maximum(shares, shares.T), 0)
    upper = np.triu(often, 1).ravel()
    closest = [
        (int(place) // layer.experts, int(place) % layer.experts)
        for place in np.argsort(-upper, kind="stable")[:top]
        if upper[place] > 0
    ]
    found = [Pair(i, j, float(often[i, j]), int(pairs[i, j])) for i, j in closest]
    return Coactivation(
        shares,
        tuple(found if adjacent_ranks else _tested(layer, prompt, found)),
        (layer.active - 1) / max(layer.experts - 1, 1),
        highest_by_chance(layer.experts, layer.active, len(layer.chosen)),
        adjacent_ranks,
    )


@lru_cache(maxsize=256)
def highest_by_chance(experts: int, active: int, tokens: int) -> float:
    """The closest pair's share in a uniform router, mean of simulated ones (pairs taken as independent)."""
    if active < 2:
        return 0.0
    random = np.random.default_rng((experts, active, tokens))
    pairs = experts * (experts - 1) // 2
    chance = active * (active - 1) / (experts * (experts - 1))
    highest = [random.binomial(tokens, chance, pairs).max() for _ in range(_RUNS)]
    return min(1.0, float(np.mean(highest)) / max(tokens * active / experts, 1))


def _tested(layer: LayerTrace, prompt: Integers, found: list[Pair]) -> list[Pair]:
    """Each with how far it is beyond its experts' loads, prompt by prompt; as they are where that cannot be said.

    Chance exchanges the measured and the expected side of a prompt; a pair is held against the furthest of all pairs.
    """
    experts, active = layer.experts, layer.active
    blocks = prompt % _BLOCKS
    count = int(blocks.max()) + 1
    if active < 2 or not found or count < FEWEST_PROMPTS or count * experts**2 > _NUMBERS:
        return found
    loads = np.bincount((blocks[:, None] * experts + layer.chosen).ravel(), minlength=count * experts)
    loads = loads.reshape(count, experts)
    upper = np.triu_indices(experts, 1)
    first, other = upper
    expected = _expected_pairs(loads.astype(float), active)[:, first, other]
    taken = np.zeros(count * experts**2, np.int64)
    for one, two in combinations(np.sort(layer.chosen.astype(np.int64), axis=1).T, 2):
        taken += np.bincount((blocks * experts + one) * experts + two, minlength=len(taken))
    excess = taken.reshape(count, experts, experts)[:, first, other] - expected
    total = loads.sum(0)
    excess[:, np.minimum(total[first], total[other]) < _FEWEST] = 0
    size = np.sqrt((excess**2).sum(0))
    scaled = excess / np.where(size > 0, size, np.inf)
    furthest = (signs(count, runs_for(len(first))) @ scaled).max(1)
    place = np.zeros((experts, experts), np.int64)
    place[upper] = np.arange(len(first))
    result = []
    for pair in found:
        at = place[min(pair.expert, pair.other), max(pair.expert, pair.other)]
        p_value = float((furthest >= scaled[:, at].sum() - 1e-9).mean())
        result.append(
            replace(pair, expected=float(expected[:, at].sum()), p_value=p_value, beyond_chance=p_value <= LEVEL + 1e-9)
        )
    return result


def _expected_pairs(loads: Floats, active: int) -> Floats:
    """Tokens that take both experts where loads [prompts, E] are kept and pairs are as even as they allow:
    a_i * a_j, with row sums load * (active - 1). [prompts, E, E]"""
    target = loads * (active - 1)
    factors = target / np.sqrt(np.maximum(target.sum(1, keepdims=True), 1e-300))
    for _ in range(60):
        rest = factors.sum(1, keepdims=True) - factors
        factors = np.sqrt(factors * target / np.maximum(rest, 1e-300))
    pairs = factors[:, :, None] * factors[:, None, :]
    return np.asarray(np.minimum(pairs, np.minimum(loads[:, :, None], loads[:, None, :])))
