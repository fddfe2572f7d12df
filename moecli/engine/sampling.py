"""Logits -> one token id: greedy, temperature, top-k, top-p, min-p, repetition penalty; reproducible by seed."""

from __future__ import annotations

import os
import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from moecli.errors import UsageError
from moecli.text.defaults import GenerationDefaults

_COLDEST = 1e-6  # any lower is greedy all the same, and would overflow float32
_FIRST_LOOK = 512  # candidates sorted before falling back to the whole vocabulary


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. temperature 0 is greedy; the neutral values switch a filter off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0

    def __post_init__(self) -> None:
        ranges = (
            ("--temperature", self.temperature, 0 <= self.temperature <= 100, "0 to 100"),
            ("--top-k", self.top_k, self.top_k >= 0, "0 (off) or more"),
            ("--top-p", self.top_p, 0 < self.top_p <= 1, "more than 0, up to 1"),
            ("--min-p", self.min_p, 0 <= self.min_p <= 1, "0 to 1"),
            ("--repeat-penalty", self.repeat_penalty, 0.01 <= self.repeat_penalty <= 100, "0.01 to 100"),
        )
        for option, value, good, meaning in ranges:
            if not good:
                raise UsageError(f"{option} {value} is out of range", f"it takes {meaning}")


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """What the user asked for; None leaves a choice to the model's vendor."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None

    def resolve(self, vendor: GenerationDefaults) -> Sampling:
        """The user's word first, then the vendor's, then a temperature of 0.7. UsageError out of range."""

        def choose(user: float | None, theirs: float | None, otherwise: float) -> float:
            return user if user is not None else theirs if theirs is not None else otherwise

        greedy = self.temperature is None and vendor.do_sample is False
        return Sampling(
            0.0 if greedy else choose(self.temperature, vendor.temperature, 0.7),
            int(choose(self.top_k, vendor.top_k, 0)),
            choose(self.top_p, vendor.top_p, 1.0),
            choose(self.min_p, vendor.min_p, 0.0),
            choose(self.repeat_penalty, vendor.repetition_penalty, 1.0),
        )


def new_seed() -> int:
    """A seed that nobody can foretell, 32 bits."""
    return int.from_bytes(os.urandom(4), "little")


class Rule(Protocol):
    """What an answer has to obey, told of each token that it gets."""

    def masked(self, logits: Tensor) -> Tensor:
        """`logits` [V] with no chance left for what may not come next."""
        ...

    def accept(self, token: int) -> None:
        """The answer goes on with this token."""
        ...


class Sampler:
    """Draws tokens; the same seed and logits give the same tokens on every machine."""

    def __init__(self, sampling: Sampling, seed: int, rule: Rule | None = None) -> None:
        self._sampling, self._rule = sampling, rule
        self._random = random.Random(seed)

    def pick(self, logits: Tensor, seen: Collection[int]) -> int:
        """The next id from float32 `logits` [V]; `seen` are the ids that the repetition penalty touches."""
        if self._rule is None:
            return self._draw(logits, seen)
        token = self._draw(self._rule.masked(logits), seen)
        self._rule.accept(token)
        return token

    def _draw(self, logits: Tensor, seen: Collection[int]) -> int:
        options = self._sampling
        if options.repeat_penalty != 1 and seen:
            logits = _penalise(logits, seen, options.repeat_penalty)
        if options.temperature == 0:
            return int(logits.argmax())
        logits = logits / max(options.temperature, _COLDEST)
        draw = self._random.random()
        if options.top_k == 0 and options.top_p == 1 and options.min_p == 0:
            return _invert(logits.softmax(-1), draw)
        probabilities, ids = _candidates(logits, options)
        return int(ids[_invert(probabilities, draw)])


@dataclass(frozen=True, slots=True)
class TokenScore:
    """The log-probability of a token, and of the likeliest in its place by id, best first.

    They are the model's own: before temperature, penalty and filters.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def score(logits: Tensor, token_id: int, top: int) -> TokenScore:
    """Of one token among float32 `logits` [V], beside the `top` likeliest."""
    scores = logits.log_softmax(-1)
    values, ids = scores.topk(min(top, len(scores)))
    return TokenScore(token_id, float(scores[token_id]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


class ScoringSampler(Sampler):
    """Also keeps the score of each token that it draws, in `scores`."""

    def __init__(
        self, sampling: Sampling, seed: int, top: int, scores: list[TokenScore], rule: Rule | None = None
    ) -> None:
        super().__init__(sampling, seed, rule)
        self._top, self._scores = top, scores

    def pick(self, logits: Tensor, seen: Collection[int]) -> int:
        token = super().pick(logits, seen)
        self._scores.append(score(logits, token, self._top))
        return token


def _penalise(logits: Tensor, seen: Collection[int], penalty: float) -> Tensor:
    """CTRL's rule (arXiv 1909.05858): seen tokens' logits shrink towards less likely."""
    ids = torch.tensor(sorted(set(seen)))
    scores = logits[ids]
    return logits.scatter(0, ids, torch.where(scores > 0, scores / penalty, scores * penalty))


def _candidates(logits: Tensor, options: Sampling) -> tuple[Tensor, Tensor]:
    """Probabilities and ids that survive the filters, likeliest first."""
    size = len(logits)
    look = min(size, options.top_k or _FIRST_LOOK)
    values, ids = logits.topk(look)
    # With top-k the rest is out; without it, it still counts in the sum.
    total = values.logsumexp(0) if options.top_k else logits.logsumexp(0)
    probabilities = (values - total).exp()
    kept = _survivors(probabilities, options)
    if kept == look < size and not options.top_k:
        values, ids = logits.sort(descending=True)
        probabilities = (values - total).exp()
        kept = _survivors(probabilities, options)
    return probabilities[:kept], ids[:kept]


def _survivors(probabilities: Tensor, options: Sampling) -> int:
    """How many of the sorted probabilities stay: the nucleus, and all within min-p of the best; at least one."""
    before = probabilities.cumsum(0) - probabilities  # probability mass ahead of each candidate
    kept = (before < options.top_p) & (probabilities >= options.min_p * probabilities[0])
    return max(1, int(kept.sum()))


def _invert(probabilities: Tensor, draw: float) -> int:
    """The index at which the cumulative probability passes `draw` of the total; there is one, as `draw` is below 1."""
    cumulative = probabilities.double().cumsum(0)
    return int(torch.searchsorted(cumulative, draw * float(cumulative[-1]), right=True))
