"""Which experts are taken together: N_ij / N_i, the share of expert i's tokens that also take j."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

from moecli.routing.trace import Floats, Integers, LayerTrace

_RUNS = 20


@dataclass(frozen=True, slots=True)
class Pair:
    """Two experts that tokens often take together."""

    expert: int
    other: int
    share: float  # of the rarer one's tokens: the larger of N_ij / N_i and N_ij / N_j
    tokens: int


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


def coactivation(layer: LayerTrace, top: int = 5, adjacent_ranks: bool = False) -> Coactivation:
    """All pairs of one layer, and the `top` closest of those whose rarer expert has at least 10 tokens."""
    pairs, counts = pair_counts(layer, adjacent_ranks), layer.counts()
    shares = pairs / np.maximum(counts, 1)[:, None]
    often = np.where(np.minimum.outer(counts, counts) >= 10, np.maximum(shares, shares.T), 0)
    upper = np.triu(often, 1).ravel()
    closest = [
        (int(place) // layer.experts, int(place) % layer.experts)
        for place in np.argsort(-upper, kind="stable")[:top]
        if upper[place] > 0
    ]
    return Coactivation(
        shares,
        tuple(Pair(i, j, float(often[i, j]), int(pairs[i, j])) for i, j in closest),
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
