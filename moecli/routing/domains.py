"""How differently the domains of a prompt set load the experts, beside a random baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moecli.routing.trace import Floats, Integers, LayerTrace, RoutingTrace

_RUNS = 40


@dataclass(frozen=True, slots=True, eq=False)
class DomainDistance:
    """Jensen-Shannon divergence in bits (0: same load, 1: no expert in common), between each pair of domains."""

    matrix: Floats  # [domains, domains]
    noise: Floats  # [domains, domains]: random baseline: the tokens dealt to the domains at random, mean
    limit: Floats  # what only 1 in 20 of those exceeds

    @property
    def mean(self) -> float:
        """The mean distance over all pairs of domains."""
        return _pairs_mean(self.matrix)

    @property
    def noise_mean(self) -> float:
        """The random baseline of `mean`."""
        return _pairs_mean(self.noise)

    @property
    def beyond_noise(self) -> bool:
        """Whether the mean distance is above the random baseline: above the mean of the limits."""
        return self.mean > _pairs_mean(self.limit)


def domain_counts(layer: LayerTrace, trace: RoutingTrace) -> Integers:
    """Assignments of each expert by the tokens of each domain. [domains, E]"""
    keys = trace.domain.astype(np.int64)[:, None] * layer.experts + layer.chosen
    counts = np.bincount(keys.ravel(), minlength=len(trace.domains) * layer.experts)
    return np.asarray(counts.reshape(len(trace.domains), layer.experts))


def domain_distance(counts: Integers, active: int) -> DomainDistance:
    """counts [domains, E] of one layer. Chance: each domain draws as many tokens from the loads of all together."""
    random = np.random.default_rng(0)
    pooled = counts.sum(0) / max(counts.sum(), 1)
    drawn = np.stack([random.multinomial(size, pooled, _RUNS) for size in counts.sum(1)], 1)  # [runs, domains, E]
    # A token takes `active` different experts, which spreads the loads of its domain less than a draw at a time.
    experts = counts.shape[1]
    spread = ((experts - active) / (experts - 1)) if experts > 1 else 1.0
    chance = np.stack([divergences(run) for run in drawn]) * spread
    return DomainDistance(divergences(counts), chance.mean(0), np.percentile(chance, 95, axis=0))


def divergences(counts: NDArray[Any]) -> Floats:
    """Jensen-Shannon divergence, in bits, of each pair of rows of counts [n, E]. [n, n]"""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    own = _entropy_bits(shares)
    middle = _entropy_bits((shares[:, None] + shares[None, :]) / 2)
    return np.asarray(np.maximum(middle - (own[:, None] + own[None, :]) / 2, 0))


def _entropy_bits(shares: Floats) -> Floats:
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.asarray(-(shares * logs).sum(-1))


def _pairs_mean(matrix: Floats) -> float:
    upper = matrix[np.triu_indices(len(matrix), 1)]
    return float(upper.mean()) if upper.size else 0.0
