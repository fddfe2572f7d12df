"""Choices of experts for tests: drawn by a known law, or recorded from the built-in model."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import moecli
from moecli.engine.router import Routing
from moecli.routing.trace import LayerTrace, RoutingTrace
from moecli.text.tokenizer import Tokenizer
from tests.support.running import load

TINY = Path(moecli.__file__).parent / "tiny"
HELD_OUT = Path(__file__).parents[2] / "training" / "heldout"
Choices = NDArray[np.uint16]


def uniform(experts: int, active: int, tokens: int, seed: int = 0) -> Choices:
    """Every set of experts alike, at every token. [T, k]"""
    return drifting(experts, active, tokens, skew=0, stickiness=0, domains=1, seed=seed)


def drifting(
    experts: int, active: int, tokens: int, skew: float, stickiness: float, domains: int, seed: int = 0
) -> Choices:
    """Popularity falls as rank^-skew, ranks are redrawn for each domain, the last token's experts are e^stickiness
    times as likely. [T, k]"""
    random = np.random.default_rng(seed)
    chosen = np.empty((tokens, active), np.uint16)
    last = np.zeros(experts)
    for part in np.array_split(np.arange(tokens), domains):
        popularity = -skew * np.log(1 + random.permutation(experts))
        for token, luck in zip(part, random.gumbel(size=(len(part), experts)), strict=True):
            chosen[token] = np.argsort(-(popularity + stickiness * last + luck))[:active]
            last[:] = 0
            last[chosen[token]] = 1
    return chosen


class _Recorder:
    generated = False

    def __init__(self) -> None:
        self.chosen: dict[int, list[Choices]] = {}

    def tokens(self, ids: torch.Tensor) -> None:
        """Known already."""

    def foresee(self, layer: int, topk_ids: torch.Tensor) -> None:
        """Not of interest."""

    def record(self, layer: int, routing: Routing) -> None:
        self.chosen.setdefault(layer, []).append(routing.topk_ids.numpy().astype(np.uint16))


@cache
def recorded(tokens: int = 250) -> tuple[tuple[Choices, ...], tuple[str, ...], tuple[int, ...]]:
    """The built-in model reading the first tokens of each domain in turn: choices [T, 2] of each layer, the
    domain of each token and its id."""
    decoder, tokenizer, recorder = load(TINY, positions=tokens), Tokenizer.load(TINY), _Recorder()
    domains: list[str] = []
    read: list[int] = []
    for text in sorted(HELD_OUT.glob("*.txt")):
        ids = tokenizer.encode(text.read_text()[: tokens * 20])[:tokens]
        decoder.forward(torch.tensor(ids), decoder.new_cache(tokens, tokens), recorder)
        domains += [text.stem] * len(ids)
        read += ids
    return tuple(np.concatenate(parts) for parts in recorder.chosen.values()), tuple(domains), tuple(read)


@cache
def recorded_trace() -> RoutingTrace:
    """The same as a trace: one prompt of each domain."""
    layers, names, ids = recorded()
    domains = tuple(dict.fromkeys(names))
    domain = np.array([domains.index(name) for name in names])
    return RoutingTrace(
        tuple(LayerTrace(layer, 8, chosen) for layer, chosen in enumerate(layers)),
        np.array(ids, np.uint32),
        domain.astype(np.uint32),
        domain.astype(np.uint16),
        np.zeros(len(ids), bool),
        domains,
    )
