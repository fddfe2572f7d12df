"""What this machine can do for a plan, measured before anything is loaded; and how much others use it meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import torch

from moecli import settings
from moecli.engine.load import Model
from moecli.formats import bytes_for, stored_as
from moecli.formats.plain import torch_dtype
from moecli.formats.words import formats_of
from moecli.kernels.bandwidth import read_bandwidth
from moecli.kernels.linear import as_matrix, linear
from moecli.model.spec import ModelSpec
from moecli.planning import machine, measured
from moecli.planning.measured import Card
from moecli.planning.placement import Plan
from moecli.planning.speed import TYPICAL_DISK, Bandwidths, LinearThroughput, Sources
from moecli.store.expert_record import compute_dtype

_MOST, _LEAST = 256 * 2**20, 4 * 2**20  # of a sample
_SLACK = 16 * 2**20  # threads and library code that come with the first measurement
_WEIGHTS = 2**21  # of the matrix that products are measured with
_MANY = 64  # tokens of the larger of two products
_BURSTS = 3  # of reads; the first often meets a disk at rest
_TRIES, _TRIES_S = 3, 0.2  # at least so many, at least so long


def sample_bytes(plan: Plan) -> int:
    """How much to read for the bandwidth of RAM: no more than what the plan will take has room for."""
    return max(_LEAST, min(_MOST, plan.ram.total - machine.peak_rss() - _SLACK))


def measure_bandwidths(model: Model, plan: Plan, sample: int, card: Card | None = None) -> Bandwidths:
    """The bandwidths that this plan's speed depends on, measured now; takes `sample` bytes, and then a few MiB.

    `card`: what is known of the one that the plan is for.
    """
    bursts = [model.measure_disk(plan.memory.dtype) for _ in range(_BURSTS)] if plan.disk.experts else []
    disk = max((speed for speed in bursts if speed is not None), default=None)
    found = Bandwidths(
        ram=read_bandwidth(sample),
        disk=disk or TYPICAL_DISK,
        linear=_linear(model.spec, plan.memory.dtype),
        sources=Sources(ram="measured", disk="measured" if disk else "typical"),
    )
    converted = model.unpacked(plan.memory.dtype) is not None  # which says little of the disk alone
    measured.remember(ram=found.ram if sample == _MOST else None, disk=None if converted else disk)
    settings.return_freed_memory()  # the plan's, from here on
    return measured.with_card(found, card)


def _linear(spec: ModelSpec, dtype: str) -> LinearThroughput:
    """With a matrix of a few MiB: in a smaller one the cost of the call would count as that of its bytes."""
    shape = (_WEIGHTS // spec.hidden_size, spec.hidden_size)
    compute = torch_dtype(compute_dtype(dtype, stored_as(spec.stored_dtype)))
    dtype = formats_of(dtype).experts  # where most bytes are
    matrix = as_matrix(dtype, shape, torch.zeros(bytes_for(dtype, shape), dtype=torch.uint8))

    def seconds(tokens: int) -> float:
        x = torch.ones(tokens, spec.hidden_size, dtype=compute)
        return _fastest(lambda: linear(x, matrix))

    with torch.inference_mode():
        one, many = seconds(1), seconds(_MANY)
    operations = 2 * (_MANY - 1) * shape[0] * shape[1]
    return LinearThroughput(bytes_for(dtype, shape) / one, operations / max(many - one, many / _MANY))


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the best of many tries: what other programs take of the machine is not its speed."""
    began, times = time.perf_counter(), list[float]()
    while len(times) < _TRIES or time.perf_counter() - began < _TRIES_S:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


class OtherPrograms:
    """From when this is made: the share of all processors' time that other programs take."""

    def __init__(self) -> None:
        self._before = _processor_seconds()

    def share(self) -> float:
        """The share of all processors' time that other programs took so far, 0 to 1."""
        whole, busy, ours = (now - then for now, then in zip(_processor_seconds(), self._before, strict=True))
        return min(1.0, max(0.0, busy - ours) / whole) if whole > 0 else 0.0


def _processor_seconds() -> tuple[float, float, float]:
    """Of all processors so far: in all, at work, at work for this process."""
    times, ours = psutil.cpu_times(), psutil.Process().cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    counted_twice = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    whole = sum(times) - counted_twice
    return whole, whole - idle, ours.user + ours.system
