"""How long an expert takes on the CPU and by way of the device, measured; and which of the two it should go."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch

from moecli.experts.arena import CPU, Arena
from moecli.experts.copies import Copies
from moecli.experts.pieces import as_expert
from moecli.experts.store import Streamed, compute
from moecli.kernels.linear import Expert
from moecli.model.spec import Activation
from moecli.store.expert_record import Record

_MANY = 32  # tokens of the larger of two measurements
_TRIALS, _TRIAL_S = 3, 0.05  # at least so many, at least so long
_COLD = 128 * 2**20  # bytes of weights taken in turn, so that no cache holds them


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
        uploaded = copying + size / rates.copy
        there = max(uploaded, computing) + rates.device.seconds(tokens, size)
        here = host + rates.host.seconds(tokens, size)
        if there < here:
            copied.append(expert)
            copying, computing = uploaded, there
        else:
            host = here
    return copied


def measure(
    record: Record, activation: Activation, dtype: torch.dtype, slots: Arena, ram: Arena, copies: Copies
) -> Rates:
    """Time copies of records to the first device slot, and computations on either side. Overwrites free slots."""
    if len(ram) == 0:
        ram = Arena(1, record.stride)
    count = max(1, min(len(ram), _COLD // record.stride))
    for index in range(count):
        ram.slot(index).zero_()
    turns = cycle(range(count))
    on_host = [as_expert(record, ram.slot(index)) for index in range(count)]

    def copy() -> None:
        copies.upload(0, ram.slot(index := next(turns)), index)
        copies.wait(index)

    def pace(experts: Sequence[Expert | Streamed], device: torch.device) -> Pace:
        def seconds(tokens: int) -> float:
            x = torch.ones(tokens, record.fields["up"].shape[1], dtype=dtype, device=device)
            some = cycle(experts)
            return _fastest(lambda: compute(x, [(0, next(some))], activation).flatten()[0].item())

        one, many = seconds(1), seconds(_MANY)
        return Pace(record.size / one, max(0.0, (many - one) / one / (_MANY - 1)))

    with torch.inference_mode():
        bandwidth = ram.size / _fastest(copy)
        there = copies.ready(0)
        host = pace(on_host, CPU)
        return Rates(bandwidth, host, pace([as_expert(record, there)], there.device) if there.device != CPU else host)


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the best of a few tries, after one that does not count."""
    work()
    began, times = time.perf_counter(), list[float]()
    while len(times) < _TRIALS or time.perf_counter() - began < _TRIAL_S:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
