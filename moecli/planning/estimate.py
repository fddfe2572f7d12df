"""What a model takes on a machine, format by format: needs, placement and speed for given budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from moecli.errors import UsageError
from moecli.formats import OFFERED, stored_as
from moecli.formats.words import check_dtype
from moecli.model.spec import ModelSpec
from moecli.planning import choice, machine, measured
from moecli.planning.gpus import Gpu, parse_gpu
from moecli.planning.measured import Card
from moecli.planning.memory import DEVICE_CONTEXT, MemoryEstimate, default_context, estimate_memory
from moecli.planning.placement import Plan, largest_context, place
from moecli.planning.speed import Bandwidths, Throughput, estimate_throughput
from moecli.units import parse_size


@dataclass(frozen=True, slots=True)
class Budget:
    """The machine to plan for. `gpu`: a card named with --gpu; `card`: this machine's own, as a run found it last."""

    ram: int
    ram_given: bool
    device: int | None
    gpu: Gpu | None
    gpus: int
    bandwidths: Bandwidths
    card: Card | None = None

    @classmethod
    def of(
        cls,
        ram: str | None = None,
        vram: str | None = None,
        gpu: str | None = None,
        ram_speed: str | None = None,
        disk_speed: str | None = None,
    ) -> Budget:
        """Budgets as people write them. Left out: what this machine has free, of RAM now, of its card when it was used
        last; `gpu` "none" leaves that out. UsageError if unreadable."""
        for option, size in (
            ("--ram", ram),
            ("--vram", vram),
            ("--ram-speed", ram_speed),
            ("--disk-speed", disk_speed),
        ):
            if size is not None and parse_size(size) == 0:
                raise UsageError(f"{option} {size} is nothing", "name a size such as 6GiB")
        found = measured.recall()
        if ram_speed:
            found = replace(found, ram=parse_size(ram_speed), sources=replace(found.sources, ram="given"))
        if disk_speed:
            found = replace(found, disk=parse_size(disk_speed), sources=replace(found.sources, disk="given"))
        known, gpus, own = None, 1, None
        device = parse_size(vram) if vram else None
        if gpu is not None and gpu.casefold() != "none":
            known, gpus = parse_gpu(gpu)
            device = device or gpus * known.memory
            found = of_card(found, known)
        elif gpu is None and vram is None and (last := measured.recall_card()):
            own, device = last, last.free
        return cls(parse_size(ram) if ram else machine.free_ram(), ram is not None, device, known, gpus, found, own)

    def device_for(self, dtype: str) -> int | None:
        """Bytes of the device that a run in this format takes; None without one."""
        return choice.device_for(dtype, self.device, self.bandwidths.kernels)


def of_card(bandwidths: Bandwidths, gpu: Gpu) -> Bandwidths:
    """The same machine with this card in it, as its maker prints it."""
    sources = replace(bandwidths.sources, device="maker", link="maker")
    return replace(
        bandwidths,
        device=gpu.bandwidth,
        link=gpu.link,
        operations=gpu.operations,
        kernels=gpu.has_kernels,
        sources=sources,
    )


@dataclass(frozen=True, slots=True)
class Estimate:
    """One format on one machine."""

    memory: MemoryEstimate
    plan: Plan
    speed: Throughput
    gpus_needed: int | None  # of the named GPU, to hold everything


@dataclass(frozen=True, slots=True)
class Result:
    """All that `memory` shows. `chosen` is the format asked for, or the one the model is stored in.

    `best` is the format that "auto" would choose for this machine, or the one asked for; None where none runs.
    """

    model: str
    spec: ModelSpec
    budget: Budget
    chosen: Estimate
    every: tuple[Estimate, ...]  # each format; only the chosen one if it was asked for
    asked: bool
    best: Estimate | None
    max_context: int | None  # the longest that fits, in the format `max_dtype`
    max_dtype: str | None

    @property
    def fits(self) -> bool:
        """Whether nothing is read from disk: in the format asked for, or in any of them."""
        return any(each.plan.fits for each in self.every)


def estimate(
    name: str,
    spec: ModelSpec,
    budget: Budget,
    dtype: str | None,
    context: int | None,
    batch: int,
    find_context: bool,
    kept: str | None = None,
) -> Result:
    """`kept`: the quantised format that it is published in. UsageError for an unknown format."""
    if dtype is not None:
        check_dtype(dtype)
    chosen = (kept or stored_as(spec.stored_dtype)) if dtype in (None, "auto") else dtype
    context = context or default_context(spec)
    shown = [chosen] if dtype else list(dict.fromkeys((*OFFERED, *([kept] if kept else []))))
    every = {each: estimate_one(spec, budget, each, context, batch) for each in dict.fromkeys([*shown, chosen])}
    longest, most = None, None
    if find_context:  # of equal ones the first, which is the most precise
        contexts = {each: largest_context(spec, each, batch, budget.ram, budget.device_for(each)) for each in shown}
        most = max(contexts, key=contexts.__getitem__)
        longest = contexts[most]
    return Result(
        name,
        spec,
        budget,
        every[chosen],
        tuple(every[each] for each in shown),
        dtype is not None,
        best_of([every[each] for each in ([chosen] if dtype else choice.automatic(chosen))]),
        longest,
        most,
    )


def best_of(estimates: Sequence[Estimate], streams: bool = True) -> Estimate | None:
    """The one whose plan `choice.best` takes; the most precise first."""
    plans = [each.plan for each in estimates]
    plan = choice.best(plans, plans if streams else ())
    return next((each for each in estimates if each.plan is plan), None)


def estimate_one(spec: ModelSpec, budget: Budget, dtype: str, context: int, batch: int = 1) -> Estimate:
    """One format, for `batch` texts of `context` tokens."""
    memory = estimate_memory(spec, dtype, context, batch)
    plan = place(memory, budget.ram, budget.device_for(dtype))
    count = math.ceil(memory.total / (budget.gpu.memory - DEVICE_CONTEXT)) if budget.gpu else None
    rates = budget.card.of(memory) if budget.card and plan.device.dense else None
    return Estimate(memory, plan, estimate_throughput(spec, plan, budget.bandwidths, rates=rates), count)
