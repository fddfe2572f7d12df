"""Replays a trace through the slots and policies that the expert store itself uses: hit rate against slots."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moecli.experts.policies import DEFAULT, POLICIES, Policy, Slots
from moecli.routing.oracles import Belady, Pass, Pinned, Random
from moecli.routing.trace import Choices, Integers, LayerTrace, RoutingTrace

_FRACTIONS = 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4
_FEWEST_TOKENS = 600  # of a layer: fewer would show mostly how slots fill
_WORTHWHILE = 0.05  # hit rate gained over the random baseline


def candidates(passes: Sequence[Pass], seed: int) -> dict[str, Callable[[], Policy]]:
    """Every policy that can be replayed, by name: those of the program, then those that only a replay can have."""
    return {name: choice.new for name, choice in POLICIES.items()} | {
        "random": lambda: Random(seed),
        "pinned": lambda: Pinned(passes),
        "belady": lambda: Belady(passes),
    }


REPLAYED = (*POLICIES, "random", "pinned", "belady")


def hit_rate(passes: Sequence[Pass], capacity: int, policy: Policy) -> float:
    """Share of experts found resident, once per expert and pass, as the store counts them."""
    slots = Slots(capacity, policy)
    hits = asked = 0
    for one in passes:
        found = len(slots.access(one.counts, one.tokens).hits)
        if one.counted:
            hits += found
            asked += len(one.counts)
    return hits / asked if asked else 0.0


def token_passes(chosen: Choices) -> list[Pass]:
    """Choices [T, k] as passes of one token each, as in decoding."""
    return [Pass(dict.fromkeys(row, 1), 1, True) for row in chosen.tolist()]


@dataclass(frozen=True, slots=True)
class Curve:
    """One policy's hit rate at each budget, mean over the replayed layers."""

    policy: str
    hit_rates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Replay:
    """What a cache would have done. Slots are warm between prompts; each layer has its own."""

    slots: tuple[int, ...]  # per layer
    experts: int
    curves: tuple[Curve, ...]
    layers: tuple[int, ...]  # that were replayed
    layers_in_trace: int
    tokens: int  # decoded in the replay
    tokens_in_trace: int
    generated_only: bool  # prompts were read in one pass and not counted; else every token is decoded
    active: int = 1

    @property
    def sampled(self) -> bool:
        """Whether less was replayed than was recorded."""
        return len(self.layers) < self.layers_in_trace or self.tokens < self.tokens_in_trace

    def curve(self, policy: str) -> tuple[float, ...]:
        """The hit rates of one policy, at each of `slots`."""
        return next(curve.hit_rates for curve in self.curves if curve.policy == policy)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Does caching pay here? At half the experts: the default policy against slots filled at random (C/E)."""

    pays: bool | None  # None: fewer tokens than `fewest_tokens`
    slots: int  # of the comparison
    hit_rate: float
    by_chance: float
    best_possible: float
    recommended_slots: int  # the knee: from here on a slot brings less than it did on average
    recommended_hit_rate: float
    fewest_tokens: int = 1  # below, the first uses of the slots, always misses, weigh as much as what decides

    @property
    def gain(self) -> float:
        """Hit rate above the random baseline."""
        return self.hit_rate - self.by_chance


def replay(trace: RoutingTrace, most_accesses: int = 150_000, policies: Sequence[str] = REPLAYED) -> Replay:
    """Replay each policy at each budget, on as many layers and tokens as `most_accesses` passes allow.

    Layers are taken evenly spaced, tokens in one block of neighbours per domain. Layers with another number of
    experts than the most common one are left out.
    """
    sizes = [layer.experts for layer in trace.layers]
    experts = max(set(sizes), key=lambda size: (sizes.count(size), size))
    alike = [layer for layer in trace.layers if layer.experts == experts]
    slots = tuple(sorted({max(1, round(experts * fraction)) for fraction in _FRACTIONS} - {experts}) or [1])
    generated_only = bool(trace.generated.any())
    runs = len(slots) * len(policies)
    decoded = int(trace.generated.sum()) if generated_only else trace.tokens
    affordable = max(most_accesses // runs, 1)  # tokens, over all replayed layers
    tokens = min(decoded, max(affordable // len(alike), min(_FEWEST_TOKENS, affordable)))
    layers = [alike[place] for place in _spread(len(alike), affordable // tokens)]
    kept = _blocks(trace, tokens, generated_only)
    rates = np.zeros((len(policies), len(slots)))
    for layer in layers:
        passes = _passes(layer, trace, kept, generated_only)
        makers = candidates(passes, layer.layer)
        for row, policy in enumerate(policies):
            for column, capacity in enumerate(slots):
                rates[row, column] += hit_rate(passes, capacity, makers[policy]()) / len(layers)
    curves = tuple(Curve(policy, tuple(row)) for policy, row in zip(policies, rates.tolist(), strict=True))
    replayed = int((trace.generated[kept] if generated_only else kept >= 0).sum())
    names = tuple(layer.layer for layer in layers)
    return Replay(
        slots, experts, curves, names, len(trace.layers), replayed, decoded, generated_only, alike[0].active
    )  # fmt: skip


def verdict(result: Replay, policy: str = DEFAULT) -> Verdict:
    """What a replay says about caching experts, by the curve of this policy."""
    rates = result.curve(policy)
    half = min(range(len(result.slots)), key=lambda place: abs(result.slots[place] - result.experts / 2))
    by_chance = [slots / result.experts for slots in result.slots]
    knee = max(range(len(rates)), key=lambda place: (round(rates[place] - by_chance[place], 3), -place))
    fewest = math.ceil(result.slots[half] / result.active / _WORTHWHILE)
    return Verdict(
        pays=rates[half] - by_chance[half] >= _WORTHWHILE if result.tokens >= fewest else None,
        slots=result.slots[half],
        hit_rate=rates[half],
        by_chance=by_chance[half],
        best_possible=result.curve("belady")[half],
        recommended_slots=result.slots[knee],
        recommended_hit_rate=rates[knee],
        fewest_tokens=fewest,
    )


def _spread(available: int, wanted: int) -> list[int]:
    """Up to `wanted` places of `available`, evenly spaced."""
    wanted = min(wanted, available)
    return [(2 * place + 1) * available // (2 * wanted) for place in range(wanted)]


def _blocks(trace: RoutingTrace, tokens: int, generated_only: bool) -> Integers:
    """Places of the tokens to replay: of each domain its first ones, about `tokens` decoded ones in all."""
    decoded = trace.generated if generated_only else np.ones(trace.tokens, bool)
    domains = np.unique(trace.domain)
    kept = np.zeros(trace.tokens, bool)
    left = tokens
    for done, domain in enumerate(sorted(domains, key=lambda d: int((decoded & (trace.domain == d)).sum()))):
        mine = trace.domain == domain  # the smallest domains first: what they leave is shared by the others
        before = np.cumsum(decoded & mine)
        part = mine & (before <= left // (len(domains) - done))
        kept |= part
        left -= int((part & decoded).sum())
    return np.flatnonzero(kept)


def _passes(layer: LayerTrace, trace: RoutingTrace, kept: Integers, generated_only: bool) -> list[Pass]:
    """The kept tokens as forward passes. With generated tokens in the trace, a prompt is one pass, not counted."""
    chosen = layer.chosen[kept]
    if not generated_only:
        return token_passes(chosen)
    alone, prompt = trace.generated[kept], trace.prompt[kept]
    # A pass starts at each generated token, after one, and at each new prompt.
    starts = np.flatnonzero(np.r_[True, alone[1:] | alone[:-1] | (prompt[1:] != prompt[:-1])])
    passes = []
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(kept)], strict=True):
        taken, times = np.unique(chosen[start:stop], return_counts=True)
        counts = dict(zip(taken.tolist(), times.tolist(), strict=True))
        passes.append(Pass(counts, stop - start, bool(alone[start])))
    return passes
