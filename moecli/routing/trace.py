"""A recorded trace: which experts each token took at each layer, with what weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Ids = NDArray[np.uint32]
Choices = NDArray[np.uint16]
Singles = NDArray[np.float32]
Flags = NDArray[np.bool_]

# What a file may claim, so that no table over pairs of them grows out of hand.
MOST_EXPERTS = 4096
MOST_DOMAINS = 64


@dataclass(frozen=True, slots=True, eq=False)
class LayerTrace:
    """The choices of one layer for T tokens, k of E experts each. What the recorder did not see is None."""

    layer: int
    experts: int
    chosen: Choices  # [T, k], best first
    weights: Singles | None = None  # [T, k], as the mixture used them
    entropy: Singles | None = None  # [T], H(gate probabilities) / ln E
    mean_probabilities: Floats | None = None  # [domains, E], over the tokens of each domain
    log_sum_squared: float | None = None  # mean over tokens of logsumexp(logits)^2
    probabilities: Singles | None = None  # [T, E], only when asked for
    foreseen: float | None = None  # share of the prompts' choices that its router takes before its attention, too

    @property
    def active(self) -> int:
        """k: how many experts each token takes."""
        return int(self.chosen.shape[1])

    def counts(self, tokens: Flags | None = None) -> Integers:
        """Assignments of each expert [E], of all tokens or of those flagged."""
        chosen = self.chosen if tokens is None else self.chosen[tokens]
        return np.bincount(chosen.ravel(), minlength=self.experts)


@dataclass(frozen=True, slots=True, eq=False)
class RoutingTrace:
    """Everything recorded of one model over a set of prompts. T tokens, in the order they were read."""

    layers: tuple[LayerTrace, ...]
    ids: Ids  # [T]
    prompt: Ids  # [T], the number of the prompt
    domain: Choices  # [T], an index into `domains`
    generated: Flags  # [T]
    domains: tuple[str, ...] = ("",)
    pieces: Mapping[int, str] = field(default_factory=dict)  # text of an id
    model: str = ""
    revision: str = ""
    dtype: str = ""
    family: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)  # how it was recorded, by name

    @property
    def tokens(self) -> int:
        """T: how many tokens were recorded, of all prompts."""
        return len(self.ids)

    @property
    def follows(self) -> Flags:
        """Whether a token comes after the one before it in the same prompt. [T - 1]"""
        ends = self.generated[:-1] & ~self.generated[1:]  # the next piece of a long prompt, after what was generated
        return np.asarray((self.prompt[1:] == self.prompt[:-1]) & ~ends)


def bare(layers: Mapping[int, tuple[int, Choices]]) -> RoutingTrace:
    """A trace of choices alone: for each layer its number of experts and choices [T, k]. One prompt, ids all 0."""
    traced = tuple(LayerTrace(layer, experts, chosen) for layer, (experts, chosen) in sorted(layers.items()))
    tokens = len(traced[0].chosen)
    nothing = np.zeros(tokens, np.uint32)
    return RoutingTrace(traced, nothing, nothing, nothing.astype(np.uint16), nothing.astype(bool))
