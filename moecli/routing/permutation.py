"""Tests whose unit is the prompt: tokens of one prompt are alike, so prompts are what chance deals, flips or draws.

In every array of deals row 0 is what was measured. A p-value is the share of rows at least as far as it, so it can be
no smaller than 1 / (number of different deals); where that is above LEVEL there is no verdict.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from moecli.routing.trace import Flags, Floats, Integers

LEVEL = 1 / 40  # so that 200 deals of labels show more than 1 in 20 hardly ever
SEED = 0
FEWEST_PROMPTS = 7  # for what exchanges the two sides of a prompt: 2 of 128 ways have all prompts on one side
_RUNS = 1000  # deals, the real one among them; all of them where there are no more
_FEWEST_RUNS = 200
_NUMBERS = 2_000_000  # drawn or compared for one test of one layer
_ONE_BY_ONE = 64  # prompts relabelled one by one; the sum of the rest is normal


@dataclass(frozen=True, slots=True)
class Chance:
    """One figure of one layer as chance shows it."""

    mean: float  # over all deals
    limit: float  # what 1 in 40 deals exceeds (where less is further: falls below)
    p_value: float
    beyond: bool = False  # whether it is called beyond chance, among all layers or pairs that were tested with it


def chance(values: Floats, falls: bool = False) -> Chance:
    """Of a figure over the deals [R]; row 0 was measured. `falls`: less is further from chance."""
    sign = -1 if falls else 1
    far = sign * values >= sign * values[0] - 1e-9 * max(1.0, abs(float(values[0])))
    limit = np.percentile(values, 100 * (LEVEL if falls else 1 - LEVEL))
    return Chance(float(values.mean()), float(limit), float(far.mean()))


def discoveries(p_values: Sequence[float]) -> Flags:
    """Which of several tests are called (Benjamini and Hochberg): if nothing is there, at most 1 in 40 times any; of
    those called, at most 1 in 40 is luck."""
    ranked = np.sort(np.asarray(p_values, float))
    good = np.flatnonzero(ranked <= LEVEL * np.arange(1, len(ranked) + 1) / max(len(ranked), 1) + 1e-9)
    return np.asarray(p_values) <= (ranked[good[-1]] if len(good) else -1.0)


def supports(p_value: float) -> bool:
    """Whether a sample whose smallest p-value is this one supports a verdict."""
    return p_value <= LEVEL + 1e-9


def smallest_p(sizes: Iterable[int]) -> float:
    """1 / the number of ways to deal prompts to groups of these sizes, groups of one size being alike."""
    known = list(sizes)
    return math.exp(sum(_log_factorial(same) for same in Counter(known).values()) - _log_deals(known))


def _log_deals(sizes: Sequence[int]) -> float:
    """The logarithm of the number of ways to deal to groups that have names."""
    return _log_factorial(sum(sizes)) - sum(map(_log_factorial, sizes))


def _log_factorial(number: int) -> float:
    return math.lgamma(number + 1)


def runs_for(numbers_each: int) -> int:
    """How many deals are drawn when each takes so many numbers."""
    return max(_FEWEST_RUNS, min(_RUNS, _NUMBERS // max(numbers_each, 1)))


def deals(sizes: Sequence[int], runs: int = _RUNS) -> Integers:
    """Groups of prompts [R, sum of sizes]: row 0 is 0 0 .. 1 1 .., the others all different deals or random ones."""
    real = np.repeat(np.arange(len(sizes)), sizes)
    if _log_deals(sizes) < math.log(runs + 0.5):
        return np.array(list(_every_deal(tuple(sizes), tuple(range(len(real))), len(real))))
    random = np.random.default_rng(SEED)
    return np.concatenate([real[None], random.permuted(np.tile(real, (runs - 1, 1)), axis=1)])


def _every_deal(sizes: tuple[int, ...], places: tuple[int, ...], total: int) -> Iterator[list[int]]:
    """The first that comes puts the first places into the first group."""
    if len(sizes) == 1:
        yield [0] * total
        return
    for first in combinations(places, sizes[0]):
        left = tuple(place for place in places if place not in first)
        for rest in _every_deal(sizes[1:], left, total):
            groups = [group + 1 for group in rest]
            for place in first:
                groups[place] = 0
            yield groups


def signs(prompts: int, runs: int = _RUNS) -> Integers:
    """1 or -1 for each prompt [R, prompts]; row 0 is all 1."""
    if prompts < math.log2(runs + 0.5):
        return np.array(list(product((1, -1), repeat=prompts)))
    drawn = np.random.default_rng(SEED).integers(0, 2, (runs, prompts)) * 2 - 1
    drawn[0] = 1
    return np.asarray(drawn)


def resampled(counts: NDArray[np.int64]) -> Floats:
    """Loads [R, E] of a router that is even over all such prompts: the cluster bootstrap. counts [prompts, E].

    Prompts are drawn with replacement, each as far from its even share as it is from the mean of all. Row 0 is their
    sum as measured. What a prompt's experts have in common, and how skewed they are, stays.
    """
    prompts, experts = counts.shape
    total = counts.sum(1, keepdims=True)
    apart = (counts - total * (counts.sum(0) / max(total.sum(), 1))) * math.sqrt(prompts / max(prompts - 1, 1))
    drawn = np.random.default_rng(SEED).multinomial(prompts, np.full(prompts, 1 / prompts), runs_for(counts.size))
    loads = np.maximum(total.sum() / experts + drawn @ apart, 0)
    loads[0] = counts.sum(0)
    return np.asarray(loads)


def relabelled(counts: NDArray[np.int64]) -> Floats:
    """Loads [R, E] in whole numbers when the experts are renumbered at random in each prompt: no expert is left out in
    prompt after prompt. counts [prompts, E]; row 0 is their sum."""
    experts = counts.shape[1]
    ordered = counts[np.argsort(-counts.var(1), kind="stable")].astype(float)
    single, rest = ordered[:_ONE_BY_ONE], ordered[_ONE_BY_ONE:]
    labels = _labels(*single.shape)
    loads: Floats = np.stack([row[labels[:, place]] for place, row in enumerate(single)]).sum(0)
    if len(rest):
        spread = math.sqrt(float(rest.var(1).sum()) * experts / max(experts - 1, 1))
        luck = np.random.default_rng(SEED).normal(0, spread, loads.shape)
        loads = np.maximum(loads + rest.sum() / experts + luck - luck.mean(1, keepdims=True), 0)
    loads[0] = counts.sum(0)
    return loads


@lru_cache(maxsize=2)
def _labels(prompts: int, experts: int) -> NDArray[np.uint16]:
    """A random order of the experts for each deal and prompt [R, prompts, E]."""
    luck = np.random.default_rng(SEED).random((runs_for(prompts * experts), prompts, experts), np.float32)
    return np.asarray(luck.argsort(-1), np.uint16)
