"""Which experts of one layer stay in its slots: the policies, and the slots that obey them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from heapq import nsmallest
from types import MappingProxyType
from typing import Protocol

_HALF_LIVES = 0.25, 32, 4096  # tokens
_LEARNING_RATE = 0.05


class Policy(Protocol):
    """What keeping an expert is worth. One object serves one layer."""

    def used(self, counts: Mapping[int, int], tokens: int) -> None:
        """One pass of `tokens` tokens took each expert this often, at most once per token."""
        ...

    def value(self, expert: int) -> float:
        """Higher is kept. An expert never used is worth 0."""
        ...


class Lru:
    """An expert is worth the pass of its last use; within one pass, the number of uses."""

    def __init__(self) -> None:
        self._passes = 0
        self._last: dict[int, float] = {}

    def used(self, counts: Mapping[int, int], tokens: int) -> None:
        self._passes += 1
        for expert, count in counts.items():
            self._last[expert] = self._passes + count / (tokens + 1)

    def value(self, expert: int) -> float:
        return self._last.get(expert, 0.0)


class Lfu:
    """An expert is worth the number of its uses since the start."""

    def __init__(self) -> None:
        self._uses: dict[int, int] = {}

    def used(self, counts: Mapping[int, int], tokens: int) -> None:
        for expert, count in counts.items():
            self._uses[expert] = self._uses.get(expert, 0) + count

    def value(self, expert: int) -> float:
        return self._uses.get(expert, 0)


class _Rate:
    """Uses of each expert per token, where a token counts half as much `half_life` tokens later.

    Nothing is faded: newer tokens weigh more instead, and the rate is a share of all weight so far.
    """

    def __init__(self, half_life: float) -> None:
        self._growth = 2 ** (1 / half_life)
        self._forgotten = 30 * half_life  # tokens after which a use counts for nothing
        self._next = 1.0  # weight of the next token
        self.total = 0.0
        self.uses: dict[int, float] = {}

    def used(self, counts: Mapping[int, int], tokens: int) -> None:
        """The order within a pass is unknown: its tokens weigh alike."""
        if self._next > 1e100:
            self.uses = {expert: uses / self._next for expert, uses in self.uses.items()}
            self.total, self._next = self.total / self._next, 1.0
        gain = self._growth ** min(tokens, self._forgotten)
        weight = self._next * (gain - 1) / (self._growth - 1)
        for expert, count in counts.items():
            self.uses[expert] = self.uses.get(expert, 0.0) + weight * count / tokens
        self.total += weight
        self._next *= gain


class Adaptive:
    """An expert is worth the probability of its use by the next token.

    That mixes rates over the last token, this passage and the whole text. The mixture's shares are learned
    while the text is generated, by online expectation maximisation: each scale gains by the part of the selected
    experts' probability that it foretold.
    """

    def __init__(self) -> None:
        self._rates = [_Rate(half_life) for half_life in _HALF_LIVES]
        self._shares = [1 / len(_HALF_LIVES)] * len(_HALF_LIVES)
        self._scales: list[tuple[dict[int, float], float]] = []  # uses, and what turns them into probability

    def used(self, counts: Mapping[int, int], tokens: int) -> None:
        if tokens == 1:
            self._learn(counts)
        for rate in self._rates:
            rate.used(counts, tokens)
        self._scales = [(rate.uses, share / rate.total) for rate, share in zip(self._rates, self._shares, strict=True)]

    def value(self, expert: int) -> float:
        probability = 0.0
        for uses, factor in self._scales:
            if expert in uses:
                probability += uses[expert] * factor
        return probability

    def _learn(self, selected: Iterable[int]) -> None:
        foretold = [[uses.get(expert, 0.0) * factor for uses, factor in self._scales] for expert in selected]
        known = [(parts, sum(parts)) for parts in foretold if any(parts)]
        for scale in range(len(self._shares) if known else 0):
            part = sum(parts[scale] / total for parts, total in known) / len(known)
            self._shares[scale] += _LEARNING_RATE * (part - self._shares[scale])


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """One policy that `--policy` may name, and its sentence in the help."""

    new: Callable[[], Policy]
    meaning: str


POLICIES: Mapping[str, PolicyChoice] = MappingProxyType(
    {
        "adaptive": PolicyChoice(Adaptive, "the expert least likely to be used next leaves"),
        "lru": PolicyChoice(Lru, "the least recently used expert leaves"),
        "lfu": PolicyChoice(Lfu, "the least frequently used expert leaves"),
    }
)
DEFAULT = "adaptive"


@dataclass(slots=True)
class Access:
    """What one pass finds: resident experts, and those to read, most valuable first.

    A miss without a slot is read into staging for this pass and not kept.
    """

    hits: list[tuple[int, int]] = field(default_factory=list)  # expert, slot
    misses: list[tuple[int, int | None]] = field(default_factory=list)


class Slots:
    """Which experts of one layer are in its slots. Each layer has its own, so that no layer starves another."""

    def __init__(self, capacity: int, policy: Policy) -> None:
        self._policy = policy
        self._held: dict[int, int] = {}  # expert -> slot
        self._free = list(range(capacity - 1, -1, -1))

    def access(self, counts: Mapping[int, int], tokens: int) -> Access:
        """One pass of `tokens` tokens asks for these experts, each `counts[expert]` times.

        Slots are given at once: the caller must fill them, or `forget` the expert. No expert asked for in this
        pass loses its slot in it. A miss takes a slot from an expert that is worth no more than itself.
        """
        self._policy.used(counts, tokens)
        value = self._policy.value
        access = Access(hits=[(expert, self._held[expert]) for expert in sorted(counts) if expert in self._held])
        missing = sorted((-value(expert), expert) for expert in counts if expert not in self._held)
        leaving = iter(self._least_valuable(len(missing) - len(self._free), counts))
        for worth, expert in missing:
            slot: int | None = None
            if self._free:
                slot = self._free.pop()
            elif (victim := next(leaving, None)) is not None and victim[0] <= -worth:
                slot = self._held.pop(victim[1])
            if slot is not None:
                self._held[expert] = slot
            access.misses.append((expert, slot))
        return access

    def forget(self, expert: int) -> None:
        """The bytes in this expert's slot are not its own (a read failed or was interrupted): free the slot."""
        slot = self._held.pop(expert, None)
        if slot is not None:
            self._free.append(slot)

    def __contains__(self, expert: int) -> bool:
        return expert in self._held

    def __len__(self) -> int:
        return len(self._held)

    def _least_valuable(self, count: int, asked: Mapping[int, int]) -> list[tuple[float, int]]:
        """Up to `count` residents that this pass does not ask for, the least valuable first."""
        if count <= 0:
            return []
        value = self._policy.value
        return nsmallest(count, ((value(expert), expert) for expert in self._held if expert not in asked))
