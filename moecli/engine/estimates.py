"""Means with their standard errors, of tokens that resemble their neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RUN = 128  # neighbouring tokens that count as one observation


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its standard error; None where there is one observation."""

    value: float
    error: float | None


def runs(sizes: Sequence[int]) -> NDArray[np.int64]:
    """For each of the tokens of texts of these sizes the number of its run: at most RUN neighbours of one text."""
    found, first = [np.zeros(0, np.int64)], 0
    for size in sizes:
        found.append(first + np.arange(size) // RUN)
        first += -(-size // RUN)
    return np.concatenate(found)


def mean(values: NDArray[np.floating] | NDArray[np.bool_], of_run: NDArray[np.int64]) -> Estimate:
    """The mean of values [N], its error from how the runs differ: that of a ratio of sums (Cochran 1977, 6.4)."""
    value = float(np.mean(values, dtype=np.float64))
    sums = np.bincount(of_run, weights=np.asarray(values, np.float64))
    counts = np.bincount(of_run)
    if len(sums) < 2:
        return Estimate(value, None)
    spread = float(np.square(sums - value * counts).sum())
    return Estimate(value, math.sqrt(spread * len(sums) / (len(sums) - 1)) / len(values))


def exponential(of: Estimate) -> Estimate:
    """e to it, the error to first order; infinite where that is beyond all numbers."""
    try:
        value = math.exp(of.value)
    except OverflowError:
        value = math.inf
    return Estimate(value, None if of.error is None else value * of.error)
