"""Policies that only a replay can have: random, or told the future."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass through one layer: how often each expert is taken, and whether its hits are counted."""

    counts: Mapping[int, int]
    tokens: int
    counted: bool


class Random:
    """Each expert draws a random rank, once: the slots hold a random set."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._lots: dict[int, float] = {}

    def used(self, counts: Mapping[int, int], tokens: int) -> None:
        for expert in sorted(counts):
            self._lots.setdefault(expert, self._random.random())

    def value(self, expert: int) -> float:
        return self._lots.get(expert, 0.0)


class Pinned:
    """The experts used most in the whole trace stay, told beforehand."""

    def __init__(self, passes: Iterable[Pass]) -> None:
        self._uses: dict[int, int] = {}
        for one in passes:
            for expert, count in one.counts.items() if one.counted else ():
                self._uses[expert] = self._uses.get(expert, 0) + count

    def used(self, counts: Mapping[int, int], tokens: int) -> None:
        """Nothing to learn: it was told all uses beforehand."""

    def value(self, expert: int) -> float:
        return self._uses.get(expert, 0)


class Belady:
    """The expert whose next use is furthest away leaves: no policy hits more often.

    Experts used next in the same pass are told apart by the uses after it, as binary fractions of a pass. It
    matters, since what a pass asks for must stay until its end.
    """

    def __init__(self, passes: Sequence[Pass]) -> None:
        self._now = -1
        self._never = len(passes)
        self._coming: dict[int, list[tuple[int, float]]] = {}  # expert -> uses and their fractions, latest first
        for place in range(len(passes) - 1, -1, -1):
            for expert in passes[place].counts if passes[place].counted else ():
                uses = self._coming.setdefault(expert, [])
                after = 0.5 ** min(uses[-1][0] - place, 1000) * (1 + uses[-1][1]) if uses else 0.0
                uses.append((place, after))

    def used(self, counts: Mapping[int, int], tokens: int) -> None:
        self._now += 1
        for expert in counts:
            uses = self._coming.get(expert)
            while uses and uses[-1][0] <= self._now:
                uses.pop()

    def value(self, expert: int) -> float:
        uses = self._coming.get(expert)
        return uses[-1][1] - uses[-1][0] if uses else -self._never - 1
