"""Two traces of the same text side by side: two formats of a model, or two models."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moecli.errors import MoecliError
from moecli.routing.domains import divergences
from moecli.routing.temporal_locality import overlaps
from moecli.routing.trace import Choices, Integers, RoutingTrace


@dataclass(frozen=True, slots=True)
class LayerAgreement:
    """How alike one layer routes the tokens that both traces read; last, what two uniform routers show."""

    layer: int
    equal_sets: float  # share of tokens that take the same k experts
    equal_first: float
    overlap: float  # share of the k experts in common
    load_distance: float  # Jensen-Shannon divergence of the loads, bits
    equal_sets_by_chance: float  # 1 / C(E, k)
    overlap_by_chance: float  # k / E


@dataclass(frozen=True, slots=True)
class Agreement:
    """How alike two traces route, layer by layer."""

    tokens: int  # compared: up to where the texts part, prompt by prompt
    layers: tuple[LayerAgreement, ...]

    @property
    def equal_sets(self) -> float:
        """The share of tokens that take the same k experts, mean over layers."""
        return float(np.mean([layer.equal_sets for layer in self.layers]))

    @property
    def overlap(self) -> float:
        """The share of the k experts in common, mean over tokens and layers."""
        return float(np.mean([layer.overlap for layer in self.layers]))


def agreement(one: RoutingTrace, other: RoutingTrace) -> Agreement:
    """Compare where both read the same ids after the same ids. MoecliError if the models differ in shape."""
    shapes = [[(layer.layer, layer.experts, layer.active) for layer in trace.layers] for trace in (one, other)]
    if shapes[0] != shapes[1]:
        raise MoecliError(
            "the two traces have different layers, experts or active experts, so their choices cannot be compared",
            "compare two formats of one model; loads of different models are shown side by side without --against",
        )
    ours, theirs = _same_text(one, other)
    if not len(ours):
        raise MoecliError("the two traces have no token in common", "record both with the same prompts")
    layers = []
    for left, right in zip(one.layers, other.layers, strict=True):
        counted = LayerTally(left.layer, left.experts, left.active)
        counted.add(left.chosen[ours], right.chosen[theirs])
        layers.append(counted.agreement())
    return Agreement(len(ours), tuple(layers))


class LayerTally:
    """Counts how alike two routers choose, of one layer, a part of the tokens at a time."""

    def __init__(self, layer: int, experts: int, active: int) -> None:
        self._layer, self._experts, self._active = layer, experts, active
        self._tokens = self._equal_sets = self._equal_first = self._shared = 0
        self._loads = np.zeros((2, experts), np.int64)

    def add(self, one: Choices, other: Choices) -> None:
        """The choices [T, k] of the same tokens, best first."""
        shared = overlaps(one, other)
        self._tokens += len(one)
        self._equal_sets += int((shared == self._active).sum())
        self._equal_first += int((one[:, 0] == other[:, 0]).sum())
        self._shared += int(shared.sum())
        self._loads += np.stack([np.bincount(side.ravel(), minlength=self._experts) for side in (one, other)])

    def agreement(self) -> LayerAgreement:
        """Of all tokens so far, at least one."""
        return LayerAgreement(
            self._layer,
            self._equal_sets / self._tokens,
            self._equal_first / self._tokens,
            self._shared / (self._tokens * self._active),
            float(divergences(self._loads)[0, 1]),
            1 / math.comb(self._experts, self._active),
            self._active / self._experts,
        )


def _same_text(one: RoutingTrace, other: RoutingTrace) -> tuple[Integers, Integers]:
    """Places of the tokens with equal ids up to and including themselves, prompt by prompt."""
    ours: list[Integers] = []
    theirs: list[Integers] = []
    for prompt in np.intersect1d(one.prompt, other.prompt):
        left, right = np.flatnonzero(one.prompt == prompt), np.flatnonzero(other.prompt == prompt)
        length = min(len(left), len(right))
        same = one.ids[left[:length]] == other.ids[right[:length]]
        until = length if same.all() else int(same.argmin())
        ours.append(left[:until])
        theirs.append(right[:until])
    empty = np.zeros(0, np.int64)
    return np.concatenate([empty, *ours]), np.concatenate([empty, *theirs])
