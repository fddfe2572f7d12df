"""How often a token takes the experts of the token before it. Pairs never cross prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moecli.routing.trace import Choices, Flags, Integers, LayerTrace


@dataclass(frozen=True, slots=True)
class TemporalLocality:
    """How often neighbouring tokens take the same experts: fractions of their pairs. None where there is no pair."""

    top1: float | None  # both take the same first choice
    any: float | None  # they share an expert
    overlap: float | None  # share of the k experts in common


@dataclass(frozen=True, slots=True)
class LocalityBaseline:
    """What to compare with: a uniform router, and its 95 % limits for this many pairs."""

    uniform: TemporalLocality
    limit: TemporalLocality
    top1_by_load: float | None  # the first choices' own loads, in random order: sum p^2


def temporal_locality(layer: LayerTrace, follows: Flags) -> TemporalLocality:
    """`follows` [T - 1]: which tokens come after their neighbour in the same prompt. None where none does."""
    if not follows.any():
        return TemporalLocality(None, None, None)
    before, after = layer.chosen[:-1][follows], layer.chosen[1:][follows]
    shared = overlaps(before, after)
    return TemporalLocality(
        float((before[:, 0] == after[:, 0]).mean()), float((shared > 0).mean()), float(shared.mean() / layer.active)
    )


def overlaps(one: Choices, other: Choices) -> Integers:
    """Experts that two choices [N, k] have in common, row by row. [N]"""
    return np.asarray((one[:, :, None] == other[:, None, :]).sum((1, 2), dtype=np.int64))


def uniform_locality(experts: int, active: int) -> TemporalLocality:
    """The random baseline: 1/E, 1 - C(E-k, k) / C(E, k) and k/E."""
    never = math.comb(experts - active, active) / math.comb(experts, active)
    return TemporalLocality(1 / experts, 1 - never, active / experts)


def locality_baseline(layer: LayerTrace, pairs: int) -> LocalityBaseline:
    """For one layer and `pairs` neighbouring tokens; the limits from the normal approximation."""
    experts, active = layer.experts, layer.active
    even = uniform_locality(experts, active)
    load = np.bincount(layer.chosen[:, 0], minlength=experts) / len(layer.chosen)
    if not pairs:
        return LocalityBaseline(even, TemporalLocality(None, None, None), float((load**2).sum()))
    share = active / experts
    # Shared experts are hypergeometric: k drawn of E, of which k are marked.
    spread = active * share * (1 - share) * (experts - active) / max(experts - 1, 1)

    def limit(mean: float | None, variance: float) -> float:
        return (mean or 0.0) + 1.645 * math.sqrt(variance / pairs)

    return LocalityBaseline(
        even,
        TemporalLocality(
            limit(even.top1, (1 / experts) * (1 - 1 / experts)),
            limit(even.any, (even.any or 0.0) * (1 - (even.any or 0.0))),
            limit(even.overlap, spread / active**2),
        ),
        float((load**2).sum()),
    )
