"""How long an expert takes on the CPU and by way of the device, measured; and how fast a card and its link are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import cycle

import torch

from moecli.experts.arena import CPU, Arena
from moecli.experts.copies import Copies, copies_for
from moecli.experts.pieces import as_expert
from moecli.experts.store import Streamed, compute
from moecli.kernels.linear import Expert
from moecli.model.spec import Activation
from moecli.planning.measured import CardSpeeds
from moecli.planning.rates import Pace, Rates
from moecli.store.expert_record import Record

_MANY = 32  # tokens of the larger of two measurements
_TRIALS, _TRIAL_S = 3, 0.05  # at least so many, at least so long
_COLD = 128 * 2**20  # bytes of weights taken in turn, so that no cache holds them
_LARGE = 64 * 2**20  # bytes of a copy whose beginning costs nothing


def measure(
    record: Record, activation: Activation, dtype: torch.dtype, slots: Arena, ram: Arena, copies: Copies
) -> Rates:
    """Time copies of records to the first device slot, and computations on either side. Overwrites free slots."""
    if len(ram) == 0:
        ram = Arena(1, record.stride, copied_to=slots.slot(0).device)
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


def card_speeds(device: torch.device, size: int = _LARGE) -> CardSpeeds:
    """How fast a device copies its own memory, and pinned memory to and from it. Takes 2 x `size` bytes of it for now,
    and `size` of RAM."""
    slots, ram = Arena(2, size, device), Arena(1, size, copied_to=device)
    copies = copies_for(slots, device)
    ram.slot(0).zero_()

    def inside() -> None:
        slots.slot(1).copy_(slots.slot(0))
        copies.synchronize()

    def up() -> None:
        copies.upload(0, ram.slot(0), 0)
        copies.wait(0)

    def down() -> None:
        copies.download(0, ram.slot(0), 0)
        copies.wait(0)

    return CardSpeeds(2 * size / _fastest(inside), size / _fastest(up), size / _fastest(down))


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the best of a few tries, after one that does not count."""
    work()
    began, times = time.perf_counter(), list[float]()
    while len(times) < _TRIALS or time.perf_counter() - began < _TRIAL_S:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
