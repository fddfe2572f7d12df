"""What a model takes on a machine, format by format: needs, placement and speed for given budgets."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moecli.errors import UsageError
from moecli.formats import FORMATS, check_dtype, stored_as
from moecli.model.spec import ModelSpec
from moecli.planning import machine
from moecli.planning.gpus import Gpu, parse_gpu
from moecli.planning.memory import DEVICE_CONTEXT, MemoryEstimate, default_context, estimate_memory
from moecli.planning.placement import Plan, largest_context, place
from moecli.planning.speed import Bandwidths, Throughput, estimate_throughput
from moecli.units import parse_size


@dataclass(frozen=True, slots=True)
class Budget:
    """The machine to plan for."""

    ram: int
    ram_given: bool
    device: int | None
    gpu: Gpu | None
    gpus: int
    bandwidths: Bandwidths

    @classmethod
    def of(
        cls,
        ram: str | None = None,
        vram: str | None = None,
        gpu: str | None = None,
        ram_speed: str | None = None,
        disk_speed: str | None = None,
    ) -> Budget:
        """Budgets as people write them. RAM left out: what this machine has free now. UsageError if unreadable."""
        card, count = parse_gpu(gpu) if gpu else (None, 1)
        device = parse_size(vram) if vram else count * card.memory if card else None
        usual = Bandwidths()
        speeds = (ram_speed, disk_speed, gpu)
        bandwidths = Bandwidths(
            ram=parse_size(ram_speed) if ram_speed else usual.ram,
            disk=parse_size(disk_speed) if disk_speed else usual.disk,
            device=card.bandwidth if card else usual.device,
            evidence="given" if any(speeds) else "typical",
        )
        for option, size in (
            ("--ram", ram),
            ("--vram", vram),
            ("--ram-speed", ram_speed),
            ("--disk-speed", disk_speed),
        ):
            if size is not None and parse_size(size) == 0:
                raise UsageError(f"{option} {size} is nothing", "name a size such as 6GiB")
        return cls(parse_size(ram) if ram else machine.free_ram(), ram is not None, device, card, count, bandwidths)


@dataclass(frozen=True, slots=True)
class Estimate:
    """One format on one machine."""

    memory: MemoryEstimate
    plan: Plan
    speed: Throughput
    gpus_needed: int | None  # of the named GPU, to hold everything


@dataclass(frozen=True, slots=True)
class Result:
    """All that `memory` shows. `chosen` is the format asked for, or the one the model is stored in."""

    model: str
    spec: ModelSpec
    budget: Budget
    chosen: Estimate
    every: tuple[Estimate, ...]  # each format; only the chosen one if it was asked for
    asked: bool
    max_context: int | None


def estimate(
    name: str,
    spec: ModelSpec,
    budget: Budget,
    dtype: str | None,
    context: int | None,
    batch: int,
    find_context: bool,
) -> Result:
    """UsageError for an unknown format."""
    if dtype is not None:
        check_dtype(dtype)
    chosen = stored_as(spec.stored_dtype) if dtype in (None, "auto") else dtype
    context = context or default_context(spec)
    shown = [chosen] if dtype else list(FORMATS)
    every = {each: _one(spec, budget, each, context, batch) for each in dict.fromkeys([*shown, chosen])}
    return Result(
        name,
        spec,
        budget,
        every[chosen],
        tuple(every[each] for each in shown),
        dtype is not None,
        largest_context(spec, chosen, batch, budget.ram, budget.device) if find_context else None,
    )


def _one(spec: ModelSpec, budget: Budget, dtype: str, context: int, batch: int) -> Estimate:
    memory = estimate_memory(spec, dtype, context, batch)
    plan = place(memory, budget.ram, budget.device)
    count = math.ceil(memory.total / (budget.gpu.memory - DEVICE_CONTEXT)) if budget.gpu else None
    return Estimate(memory, plan, estimate_throughput(spec, plan, budget.bandwidths), count)
