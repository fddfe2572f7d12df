"""Amounts that carry their own formula: the words of an estimate are made by the arithmetic that they describe."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Amount:
    """A number and the formula it came from, as people read it."""

    value: int
    formula: str


@dataclass(frozen=True, slots=True)
class Term:
    """One line of a memory estimate: bytes, their formula in numbers, and the config keys that these came from."""

    name: str
    amount: Amount
    keys: str

    @property
    def bytes(self) -> int:
        return self.amount.value

    @property
    def formula(self) -> str:
        return self.amount.formula


def count(value: int, noun: str = "") -> Amount:
    """A number of something: 32 layers."""
    return Amount(value, f"{value:,} {noun}".rstrip())


def named(name: str, value: int) -> Amount:
    """A number with its name before it: batch 1."""
    return Amount(value, f"{name} {value:,}")


def add(parts: Iterable[Amount], join: str = " + ") -> Amount:
    """The sum."""
    parts = list(parts)
    return Amount(sum(part.value for part in parts), join.join(part.formula for part in parts))


def multiply(*factors: Amount) -> Amount:
    """The product."""
    return Amount(math.prod(factor.value for factor in factors), " x ".join(factor.formula for factor in factors))


def larger(one: Amount, other: Amount) -> Amount:
    """The larger of two buffers that are never there at once."""
    return Amount(max(one.value, other.value), f"the larger of {one.formula} and {other.formula}")


def within(amount: Amount) -> Amount:
    """In brackets, before it is multiplied."""
    return Amount(amount.value, f"({amount.formula})")


def under(heading: str, amount: Amount) -> Amount:
    """Behind words that say when it is needed."""
    return Amount(amount.value, f"{heading}: {amount.formula}")
