"""How long an expert takes on the CPU and by way of the device, measured; and which of the two it should go."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from moecli.experts.arena import Arena
from moecli.experts.copies import Copies
from moecli.experts.pieces import as_expert
from moecli.experts.store import compute
from moecli.records import Record
from moecli.spec import Activation

_MANY = 32  # tokens of the larger of two measurements
_TRIALS = 3


@dataclass(frozen=True, slots=True)
class Pace:
    """Multiplying with weights: bytes per second for one token, and what each further one adds, as a share of that."""

    bytes_per_s: float
    further: float

    def seconds(self, tokens: int, size: int) -> float:
        return size / self.bytes_per_s * (1 + self.further * (tokens - 1))


@dataclass(frozen=True, slots=True)
class Rates:
    """Copying to the device in bytes per second, and computing here and there."""

    copy: float
    host: Pace
    device: Pace


def cheaper(tokens: int, size: int, rates: Rates) -> bool:
    """Whether copying one record of `size` bytes and computing it on the device beats computing it on the CPU."""
    return size / rates.copy + rates.device.seconds(tokens, size) < rates.host.seconds(tokens, size)


def split(counts: Mapping[int, int], size: int, rates: Rates) -> list[int]:
    """Which experts, by number of tokens each, to copy while the CPU computes the rest, so that both end soon.

    Those with most tokens choose first. Copying the next one goes on while the device computes with the last.
    """
    copied = []
    copying = computing = host = 0.0  # when each is free again
    for expert, tokens in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        landed = copying + size / rates.copy
        there = max(landed, computing) + rates.device.seconds(tokens, size)
        here = host + rates.host.seconds(tokens, size)
        if there < here:
            copied.append(expert)
            copying, computing = landed, there
        else:
            host = here
    return copied


def measure(record: Record, activation: Activation, dtype: torch.dtype, slots: Arena, copies: Copies) -> Rates:
    """Time some copies of a record to the first device slot and computations on either side. Overwrites that slot."""
    source = Arena(1, record.stride, pinned=True).slot(0).zero_()
    width = record.fields["up"].shape[1]
    device = slots.slot(0).device

    def copy() -> None:
        copies.bring(0, source, 0)
        copies.settle(0)

    def pace(data: Tensor) -> Pace:
        expert = as_expert(record, data)

        def seconds(tokens: int) -> float:
            x = torch.ones(tokens, width, dtype=dtype, device=data.device)
            return _fastest(lambda: compute(x, [(0, expert)], activation)[0, 0, 0].item())

        one, many = seconds(1), seconds(_MANY)
        return Pace(record.size / one, max(0.0, (many - one) / one / (_MANY - 1)))

    with torch.inference_mode():
        bandwidth = record.stride / _fastest(copy)
        host = pace(source)
        return Rates(bandwidth, host, pace(copies.ready(0)) if device.type != "cpu" else host)


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the best of a few tries, after one that does not count."""
    work()
    best = float("inf")
    for _ in range(_TRIALS):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best
