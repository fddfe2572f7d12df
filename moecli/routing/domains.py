"""How differently the domains of a prompt set load the experts, beside the same prompts dealt to the domains anew.

Tokens of one prompt are alike: were they dealt one by one, any two groups of prompts would differ "beyond chance".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moecli.routing.permutation import Chance, chance, deals, discoveries, runs_for, signs, smallest_p, supports
from moecli.routing.trace import Floats, Integers, LayerTrace, RoutingTrace

_AT_ONCE = 2_000_000  # numbers held while deals are compared


@dataclass(frozen=True, slots=True, eq=False)
class DomainDistance:
    """Jensen-Shannon divergence in bits (0: same load, 1: no expert in common) between the domains of one layer."""

    matrix: Floats  # [domains, domains]
    mean: float  # over the pairs of the domains that were tested, or of all where none was
    chance: Chance | None  # of `mean`; None: too few prompts to say


@dataclass(frozen=True, slots=True, eq=False)
class Domains:
    """All layers together. `matrix` and what chance shows of it are means over the layers; NaN where not tested."""

    layers: tuple[DomainDistance, ...]
    prompts: tuple[int, ...]  # of each domain
    smallest_p: float  # that so many prompts can give; above LEVEL there is no verdict
    matrix: Floats  # [domains, domains]
    noise: Floats  # the two domains' prompts dealt to them anew, mean
    limit: Floats  # what 1 in 40 of those deals exceeds
    p_values: Floats
    beyond: NDArray[np.bool_]  # which pairs are called different

    @property
    def tested(self) -> bool:
        """Whether there are prompts enough for a verdict."""
        return supports(self.smallest_p)


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """The prompts of a trace, one by one: those of one number in one domain."""

    of_token: Integers  # [T]
    domain: Integers  # [prompts]

    @property
    def count(self) -> int:
        """How many prompts there are."""
        return len(self.domain)

    def counts(self, layer: LayerTrace) -> Integers:
        """Assignments of each expert by each prompt. [prompts, E]"""
        keys = self.of_token[:, None] * layer.experts + layer.chosen
        counted = np.bincount(keys.ravel(), minlength=self.count * layer.experts)
        return np.asarray(counted.reshape(self.count, layer.experts))


def units(trace: RoutingTrace) -> Units:
    """The prompts of a trace, in the order of their domains."""
    keys = trace.domain.astype(np.int64) << 32 | trace.prompt.astype(np.int64)
    known, place = np.unique(keys, return_inverse=True)
    return Units(place.reshape(-1), known >> 32)


def domain_counts(layer: LayerTrace, trace: RoutingTrace) -> Integers:
    """Assignments of each expert by the tokens of each domain. [domains, E]"""
    keys = trace.domain.astype(np.int64)[:, None] * layer.experts + layer.chosen
    counts = np.bincount(keys.ravel(), minlength=len(trace.domains) * layer.experts)
    return np.asarray(counts.reshape(len(trace.domains), layer.experts))


def domain_distances(counts: Sequence[Integers], domain: Integers, domains: int) -> Domains:
    """counts: of each layer [prompts, E]; domain [prompts].

    A domain of one prompt cannot be told from that prompt: it is measured, and takes part in no test.
    """
    prompts = np.bincount(domain, minlength=domains)
    together = [_grouped(each, domain, domains) for each in counts]
    matrices = [divergences(each) for each in together]
    tested = np.flatnonzero(prompts >= 2)
    smallest = smallest_p(prompts[tested].tolist()) if len(tested) > 1 else 1.0
    compared = tested if len(tested) > 1 else np.flatnonzero(prompts)
    means = [_pairs_mean(each[np.ix_(compared, compared)]) for each in matrices]
    chances: list[Chance | None] = [None] * len(counts)
    if supports(smallest):
        chances = [*called([chance(values) for values in _dealt(counts, domain, tested)])]
    layers = tuple(map(DomainDistance, matrices, means, chances))
    pairs = _pairs(counts, domain, prompts, tested if supports(smallest) else tested[:0])
    return Domains(layers, tuple(prompts.tolist()), smallest, np.mean(matrices, 0), *pairs)


def called(chances: Sequence[Chance]) -> list[Chance]:
    """The same with `beyond` told of all of them together."""
    found = discoveries([each.p_value for each in chances])
    return [replace(each, beyond=bool(beyond)) for each, beyond in zip(chances, found, strict=True)]


def load_distances(ours: Sequence[Integers], theirs: Sequence[Integers], paired: bool) -> tuple[DomainDistance, ...]:
    """Of two traces' loads, layer by layer; counts [prompts, E].

    Paired: both read the same prompts, and chance exchanges the two sides of a prompt. Else it deals all prompts.
    """
    sizes = len(ours[0]), len(theirs[0])
    smallest = 2.0 ** (1 - sizes[0]) if paired else smallest_p(sizes) if min(sizes) > 1 else 1.0
    found: list[DomainDistance] = []
    chances: list[Chance] = []
    for one, two in zip(ours, theirs, strict=True):
        both = np.concatenate([one, two]).astype(float)
        runs = runs_for(both.size)
        if not supports(smallest):
            first = np.repeat([[1, 0]], sizes, axis=1)
        elif paired:
            kept = (signs(sizes[0], runs) + 1) // 2
            first = np.concatenate([kept, 1 - kept], axis=1)
        else:
            first = 1 - deals(sizes, runs)
        sides = np.stack([first @ both, (1 - first) @ both], 1)  # [R, 2, E]
        chances.append(chance(_mean_divergence(sides)))
        found.append(DomainDistance(divergences(sides[0]), float(divergences(sides[0])[0, 1]), None))
    if not supports(smallest):
        return tuple(found)
    return tuple(replace(each, chance=one) for each, one in zip(found, called(chances), strict=True))


def divergences(counts: NDArray[Any]) -> Floats:
    """Jensen-Shannon divergence, in bits, of each pair of rows of counts [n, E]. [n, n]"""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    own = _entropy_bits(shares)
    middle = _entropy_bits((shares[:, None] + shares[None, :]) / 2)
    return np.asarray(np.maximum(middle - (own[:, None] + own[None, :]) / 2, 0))


def _grouped(counts: Integers, domain: Integers, domains: int) -> Integers:
    sums = np.zeros((domains, counts.shape[1]), np.int64)
    np.add.at(sums, domain, counts)
    return sums


def _dealt(counts: Sequence[Integers], domain: Integers, tested: Integers) -> Iterator[Floats]:
    """For each layer the mean divergence of the tested domains [R] when their prompts are dealt anew."""
    mine = np.flatnonzero(np.isin(domain, tested))
    mine = mine[np.argsort(domain[mine], kind="stable")]
    sizes = [int((domain == group).sum()) for group in tested]
    widest = max(each.shape[1] for each in counts)
    groups = deals(
        sizes, runs_for(max(len(sizes) * (len(sizes) - 1) // 2 * widest, len(mine)))
    )  # the same deals for all layers
    for layer in counts:
        known = layer[mine].astype(float)
        step = max(1, _AT_ONCE // (len(sizes) * layer.shape[1]))
        parts = [groups[start : start + step] for start in range(0, len(groups), step)]
        yield np.concatenate(
            [_mean_divergence(np.stack([(part == group) @ known for group in range(len(sizes))], 1)) for part in parts]
        )


def _mean_divergence(counts: Floats) -> Floats:
    """The mean divergence over the pairs of groups; counts [R, groups, E]. [R]"""
    shares = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    own = _entropy_bits(shares)  # [R, groups]
    pairs = list(combinations(range(counts.shape[1]), 2))
    middle = sum(_entropy_bits((shares[:, i] + shares[:, j]) / 2) for i, j in pairs)
    return np.asarray(np.maximum(middle / len(pairs) - own.mean(1), 0))


def _pairs(
    counts: Sequence[Integers], domain: Integers, prompts: Integers, tested: Integers
) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """Mean and limit by chance, p-values and verdicts of each pair of domains [n, n], only their own prompts dealt."""
    size = len(prompts)
    noise, limit, p_values = (np.full((size, size), np.nan) for _ in range(3))
    beyond = np.zeros((size, size), bool)
    pairs = [(i, j) for i, j in combinations(tested, 2) if supports(smallest_p((prompts[i], prompts[j])))]
    # Layers side by side, each divided by its active experts: every layer has the tokens of a prompt as its sum.
    tokens = counts[0].sum(1).astype(float)
    columns = np.concatenate([each * (tokens.sum() / max(each.sum(), 1)) for each in counts], axis=1)
    runs = runs_for(max(columns.shape[1] * len(pairs) // 8, 2 * int(prompts.max())))
    found = []
    for i, j in pairs:
        mine = np.concatenate([np.flatnonzero(domain == i), np.flatnonzero(domain == j)])
        second = deals((int(prompts[i]), int(prompts[j])), runs).astype(float)
        both, length = columns[mine], tokens[mine]
        later = second @ both
        one = (both.sum(0) - later) / (length.sum() - second @ length)[:, None]
        two = later / (second @ length)[:, None]
        values = _entropy_bits((one + two) / 2) - (_entropy_bits(one) + _entropy_bits(two)) / 2
        found.append(chance(np.maximum(values / len(counts), 0)))
    for (i, j), each in zip(pairs, called(found), strict=True):
        for place in ((i, j), (j, i)):
            noise[place], limit[place], p_values[place] = each.mean, each.limit, each.p_value
            beyond[place] = each.beyond
    return noise, limit, p_values, beyond


def _entropy_bits(shares: Floats) -> Floats:
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.asarray(-(shares * logs).sum(-1))


def _pairs_mean(matrix: Floats) -> float:
    upper = matrix[np.triu_indices(len(matrix), 1)]
    return float(upper.mean()) if upper.size else 0.0
