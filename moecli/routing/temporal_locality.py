"""How often a token takes the experts of the token before it. Pairs never cross prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moecli.routing.permutation import FEWEST_PROMPTS, SEED, Chance, chance, runs_for, signs
from moecli.routing.trace import Choices, Flags, Floats, Integers, LayerTrace


@dataclass(frozen=True, slots=True)
class TemporalLocality:
    """How often neighbouring tokens take the same experts: fractions of their pairs. None where there is no pair."""

    top1: float | None  # both take the same first choice
    any: float | None  # they share an expert
    overlap: float | None  # share of the k experts in common


@dataclass(frozen=True, slots=True)
class LocalityBaseline:
    """What a uniform router shows, and its 95 % limits for this many pairs."""

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


def locality_chances(layer: LayerTrace, follows: Flags, prompt: Integers, prompts: int) -> Mapping[str, Chance]:
    """Of `top1`, `any` and `overlap`: do neighbours share experts more often than tokens of the same prompt at random
    places? Chance exchanges the two of a prompt. Empty where there are too few prompts. prompt [T], in 0..prompts."""
    after = np.flatnonzero(follows) + 1
    place = prompt[after]
    used = np.unique(place)
    if not len(used) or len(used) < FEWEST_PROMPTS:
        return {}
    pairs = np.bincount(place, minlength=prompts)[used].astype(float)
    measured = _shared(layer.chosen[after - 1], layer.chosen[after], place, prompts)[:, used]
    luck = np.lexsort((np.random.default_rng(SEED).random(len(prompt)), prompt))  # each prompt in random order
    alike = prompt[luck][1:] == prompt[luck][:-1]
    drawn = _shared(layer.chosen[luck[:-1][alike]], layer.chosen[luck[1:][alike]], prompt[luck[1:][alike]], prompts)
    sizes = np.bincount(prompt, minlength=prompts)[used]
    every = np.maximum(sizes * (sizes - 1.0), 1)
    expected = np.stack(
        [
            _coincidences(layer.chosen[:, :1], prompt, layer.experts, prompts)[used] / every,
            drawn[1][used] / np.maximum(sizes - 1, 1),
            _coincidences(layer.chosen, prompt, layer.experts, prompts)[used] / every / layer.active,
        ]
    )
    flips = signs(len(used), runs_for(len(used)))
    middle = (expected * pairs).sum(1) / pairs.sum()
    values = flips @ (measured - expected * pairs).T / pairs.sum() + middle  # [R, 3]
    return {name: chance(values[:, row]) for row, name in enumerate(("top1", "any", "overlap"))}


def _shared(before: Choices, after: Choices, place: Integers, prompts: int) -> Floats:
    """Sums over the pairs of each prompt: equal first choices, any in common, share in common. [3, prompts]"""
    shared = overlaps(before, after)
    figures = (before[:, 0] == after[:, 0]).astype(float), (shared > 0).astype(float), shared / before.shape[1]
    return np.stack([np.bincount(place, figure, prompts) for figure in figures])


def _coincidences(chosen: Choices, prompt: Integers, experts: int, prompts: int) -> Floats:
    """Ordered pairs of different tokens of a prompt, times the choices that they have in common. [prompts]"""
    keys = prompt[:, None] * experts + chosen
    counts = np.bincount(keys.ravel(), minlength=prompts * experts).reshape(prompts, experts).astype(float)
    return np.asarray((counts * (counts - 1)).sum(1))
