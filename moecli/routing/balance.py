"""How evenly the load is spread over the experts of a layer, beside what a uniform router would show.

Every figure takes counts [..., E] and works on the last axis. p = counts / sum of counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moecli.routing.trace import Floats

OVERFLOW_FACTORS = 1.0, 1.25, 1.5, 2.0
_RUNS = 200  # simulated uniform routers
_EXACT = 4_000_000  # random numbers drawn rather than approximating


def entropy(counts: NDArray[Any]) -> Floats:
    """The load's entropy H(p) / ln E: 1 is even."""
    p = _shares(counts)
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    return np.asarray(-(p * logs).sum(-1) / math.log(max(p.shape[-1], 2)))


def max_violation(counts: NDArray[Any]) -> Floats:
    """MaxVio: the busiest expert's load over the mean, less 1."""
    return np.asarray(_shares(counts).max(-1) * counts.shape[-1] - 1)


def cv2(counts: NDArray[Any]) -> Floats:
    """Squared coefficient of variation, with the population variance."""
    return np.asarray((_shares(counts) * counts.shape[-1]).var(-1))


def gini(counts: NDArray[Any]) -> Floats:
    """Gini coefficient: 0 all alike, 1 - 1/E one expert takes all."""
    experts = counts.shape[-1]
    ranks = 2 * np.arange(1, experts + 1) - experts - 1
    return np.asarray((np.sort(_shares(counts), -1) * ranks).sum(-1) / experts)


def dead(counts: NDArray[Any]) -> Floats:
    """The number of experts that no token took."""
    return np.asarray((counts <= 0).sum(-1).astype(float))


FIGURES: Mapping[str, Callable[[NDArray[Any]], Floats]] = MappingProxyType(
    {"entropy": entropy, "max_violation": max_violation, "cv2": cv2, "gini": gini, "dead": dead}
)


@dataclass(frozen=True, slots=True)
class Balance:
    """How even one layer's load is: one value for each of FIGURES."""

    entropy: float
    max_violation: float
    cv2: float
    gini: float
    dead: float


def balance(counts: NDArray[Any]) -> Balance:
    """All figures of one layer's counts [E]."""
    return _balance({name: float(figure(counts)) for name, figure in FIGURES.items()})


def _balance(figures: Mapping[str, float]) -> Balance:
    """`dead` is a count: whole where it was counted, a fraction where it is a mean."""
    dead = figures["dead"]
    return Balance(**{**figures, "dead": int(dead) if dead.is_integer() else dead})


def overflow(counts: NDArray[Any], factor: float) -> Floats:
    """Share of assignments dropped when no expert may take more than `factor` times the mean (Switch Transformer)."""
    shares = _shares(counts)
    return np.asarray(np.maximum(shares - factor / shares.shape[-1], 0).sum(-1))


@dataclass(frozen=True, slots=True)
class Noise:
    """What a uniform router shows at the same E, k and T: its mean, and what only 1 in 20 of them is worse than."""

    mean: Balance
    limit: Balance
    overflow: tuple[float, ...]  # mean, for each of OVERFLOW_FACTORS

    def shows(self, name: str, measured: float) -> bool:
        """Whether `measured` is above the random baseline: less even than 19 in 20 uniform routers."""
        limit = getattr(self.limit, name)
        return bool(measured < limit) if name == "entropy" else bool(measured > limit)


@lru_cache(maxsize=1024)
def noise(experts: int, active: int, tokens: int) -> Noise:
    """What uniform routers show at this E, k and T; simulated, always with the same random numbers."""
    counts = uniform_counts(experts, active, tokens, _RUNS)
    runs = {name: figure(counts) for name, figure in FIGURES.items()}
    worse = {name: 5 if name == "entropy" else 95 for name in FIGURES}
    mean = {name: float(values.mean()) for name, values in runs.items()}
    mean["dead"] = experts * (1 - active / experts) ** tokens
    limit = {name: float(np.percentile(values, worse[name])) for name, values in runs.items()}
    dropped = tuple(float(overflow(counts, factor).mean()) for factor in OVERFLOW_FACTORS)
    return Noise(_balance(mean), _balance(limit), dropped)


def uniform_counts(experts: int, active: int, tokens: int, runs: int) -> Floats:
    """Loads [runs, E] when each token takes `active` different experts at random.

    Drawn token by token where that is cheap. Beyond, each load is binomial, as it is, and the spread within a run
    is widened by the little that independent loads lack: their sum is fixed in truth.
    """
    random = np.random.default_rng((experts, active, tokens))
    if runs * tokens * experts <= _EXACT:
        luck = random.random((runs * tokens, experts), dtype=np.float32)
        chosen = np.argpartition(luck, active - 1, axis=1)[:, :active].reshape(runs, -1)
        chosen = chosen + experts * np.arange(runs)[:, None]
        return np.bincount(chosen.ravel(), minlength=runs * experts).reshape(runs, experts).astype(float)
    counts = random.binomial(tokens, active / experts, (runs, experts)).astype(float)
    middle = counts.mean(1, keepdims=True)
    widened = middle + (counts - middle) * math.sqrt(experts / (experts - 1)) if experts > 1 else counts
    return np.where(counts > 0, np.maximum(widened, 0), 0)


def _shares(counts: NDArray[Any]) -> Floats:
    loads = np.asarray(counts, np.float64)
    return np.asarray(loads / np.maximum(loads.sum(-1, keepdims=True), 1e-300))
