"""What the experts learn: the tokens that each is taken for more often than its load explains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moecli.routing.trace import Floats, Ids, Integers, LayerTrace

LEAST_OCCURRENCES = 10


@dataclass(frozen=True, slots=True)
class Favourite:
    """A token that an expert is taken for more often than its load explains."""

    id: int
    lift: float  # share of this token's occurrences that take the expert, over the expert's share of all tokens
    share: float
    occurrences: int


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """One layer. `lift` is the mean over experts of their highest; `shuffled_lift` the same with choices shuffled among
    the tokens of each prompt: what so many ids show because their prompts are alike, and by luck."""

    favourites: tuple[tuple[Favourite, ...], ...]  # per expert, highest lift first
    ids: int  # that occur often enough to be counted
    lift: float | None
    shuffled_lift: float | None


def vocabulary(
    layer: LayerTrace, ids: Ids, prompt: Integers, top: int = 5, least: int = LEAST_OCCURRENCES
) -> Vocabulary:
    """ids and prompt [T]; only ids with at least `least` occurrences count."""
    known, place, occurrences = np.unique(ids, return_inverse=True, return_counts=True)
    often = occurrences >= least
    if not often.any():
        return Vocabulary(((),) * layer.experts, 0, None, None)
    row = np.where(often, np.cumsum(often) - 1, -1)[place]  # of each token, -1: too rare
    occurrences, known = occurrences[often], known[often]
    shares, lifts = _lifts(layer, row, occurrences, np.arange(len(ids)))
    inside = np.empty(len(ids), np.int64)
    luck = np.random.default_rng(layer.layer).random(len(ids))
    inside[np.argsort(prompt, kind="stable")] = np.lexsort((luck, prompt))
    _, by_chance = _lifts(layer, row, occurrences, inside)
    best = np.lexsort((np.broadcast_to(-occurrences[:, None], lifts.shape), -lifts), axis=0)[:top]  # [top, E]
    favourites = tuple(
        tuple(
            Favourite(int(known[i]), float(lifts[i, expert]), float(shares[i, expert]), int(occurrences[i]))
            for i in best[:, expert]
            if lifts[i, expert] > 1
        )
        for expert in range(layer.experts)
    )
    used = layer.counts() > 0
    return Vocabulary(
        favourites, len(known), float(lifts.max(0)[used].mean()), float(by_chance.max(0)[used].mean())
    )  # fmt: skip


def _lifts(layer: LayerTrace, row: Integers, occurrences: Integers, order: Integers) -> tuple[Floats, Floats]:
    """Shares and lifts [ids, E], each token with the choices of the token that `order` [T] names."""
    counted = row >= 0
    keys = row[counted, None] * layer.experts + layer.chosen[order][counted]
    taken = np.bincount(keys.ravel(), minlength=len(occurrences) * layer.experts).reshape(-1, layer.experts)
    shares = taken / occurrences[:, None]
    overall = layer.counts() / len(layer.chosen)
    return shares, shares / np.where(overall > 0, overall, np.inf)
