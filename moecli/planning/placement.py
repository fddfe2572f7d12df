"""Where everything goes: device, RAM and disk for given budgets. `memory` prints it, `run` obeys it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from moecli.kernels.blocking import CHUNK, STAGED
from moecli.model.spec import ModelSpec
from moecli.planning.memory import (
    DEVICE_CONTEXT,
    DEVICE_PROCESS,
    MemoryEstimate,
    Unpacked,
    estimate_memory,
    layerwise_memory,
    scored_at_once,
)

_LOG = logging.getLogger(__name__)
_LEAST_CHUNK = 32  # prompt tokens per pass when memory is short


@dataclass(frozen=True, slots=True)
class Tier:
    """What lies in one place, in bytes; `experts` counts them."""

    dense: int = 0
    kv: int = 0
    activations: int = 0
    process: int = 0
    staging: int = 0
    experts: int = 0
    expert_bytes: int = 0

    @property
    def total(self) -> int:
        return self.dense + self.kv + self.activations + self.process + self.staging + self.expert_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything goes for given budgets."""

    memory: MemoryEstimate
    ram_budget: int
    device_budget: int | None
    device: Tier
    ram: Tier
    disk: Tier
    full_ram: int  # the smallest RAM budget, beside this device, with which nothing is read from disk
    least_ram: int  # the smallest that can run at all, experts streamed from disk

    @property
    def fits(self) -> bool:
        """Nothing is read from disk."""
        return self.full_ram <= self.ram_budget

    @property
    def runs_from(self) -> Literal["vram", "ram", "disk"] | None:
        """The slowest place that anything is read from; None where it does not run."""
        if self.fits:
            return "vram" if self.device.dense and not self.ram.experts else "ram"
        return "disk" if self.runs else None

    @property
    def runs(self) -> bool:
        """With experts read from disk if need be."""
        return min(self.full_ram, self.least_ram) <= self.ram_budget


def place(memory: MemoryEstimate, ram: int, device: int | None = None) -> Plan:
    """Cache and buffers first, then dense weights, then experts while there is room; the rest stays on disk.

    The device takes all of cache, buffers and dense weights, or nothing.
    """
    core = Tier(memory.dense.bytes, memory.kv.bytes, memory.activations.bytes)
    if device is None or device < least_device(memory):
        return _fill(memory, ram, device, Tier(), replace(core, process=memory.process.bytes), memory.bytes_per_expert)
    count = min(memory.expert_count, (device - least_device(memory)) // max(1, memory.slot_bytes))
    on_device = replace(
        core,
        activations=memory.device_activations,
        process=DEVICE_CONTEXT,
        staging=_staged(memory),
        experts=count,
        expert_bytes=count * memory.slot_bytes,
    )
    return _fill(memory, ram, device, on_device, Tier(process=memory.process.bytes + DEVICE_PROCESS), memory.slot_bytes)


def _fill(memory: MemoryEstimate, ram: int, device: int | None, on_device: Tier, core: Tier, size: int) -> Plan:
    """RAM has `core`, and takes the other experts: all, of `size` bytes each, or as many slots as there is room."""
    left = memory.expert_count - on_device.experts
    table = memory.table if core.dense and left else 0  # where experts are read from disk, so are its rows
    streaming = replace(core, dense=core.dense - table, staging=memory.staging if left else 0)
    full, least = core.total + left * size, streaming.total
    if full <= ram:
        in_ram, on_disk = replace(core, experts=left, expert_bytes=left * size), Tier()
    else:
        count = max(0, min(left, (ram - least) // max(1, memory.slot_bytes)))
        in_ram = replace(streaming, experts=count, expert_bytes=count * memory.slot_bytes)
        on_disk = Tier(dense=table, experts=left - count, expert_bytes=(left - count) * memory.read_bytes)
    plan = Plan(memory, ram, device, on_device, in_ram, on_disk, full_ram=full, least_ram=least)
    _LOG.debug(
        "%s, %d tokens of context: %d bytes and %d experts on the device, %d and %d in RAM, %d and %d on disk; "
        "RAM %d of %d (%d without disk, %d at least)",
        memory.dtype, memory.context, on_device.total, on_device.experts, in_ram.total, in_ram.experts,
        on_disk.total, on_disk.experts, in_ram.total, ram, full, least,
    )  # fmt: skip
    return plan


def least_device(memory: MemoryEstimate) -> int:
    """What a device must hold to be of use: everything but experts, and those on their way through it."""
    return memory.dense.bytes + memory.kv.bytes + memory.device_activations + DEVICE_CONTEXT + _staged(memory)


def _staged(memory: MemoryEstimate) -> int:
    return min(memory.expert_count, STAGED) * memory.slot_bytes


def fit(
    spec: ModelSpec,
    dtype: str,
    context: int,
    ram: int,
    device: int | None = None,
    batch: int = 1,
    unpacked: Unpacked | None = None,
    block: int | None = None,
) -> Plan:
    """The plan that a run obeys: smaller chunks of the prompt only where the usual ones would not fit at all.

    `block`: prompt tokens that pass a layer together; None: those of one text.
    """
    chunk = CHUNK
    plan = place(estimate_memory(spec, dtype, context, batch, chunk, block, unpacked=unpacked), ram, device)
    while not plan.runs and chunk > _LEAST_CHUNK:
        chunk //= 2
        plan = place(estimate_memory(spec, dtype, context, batch, chunk, block, unpacked=unpacked), ram, device)
    return plan


def fit_layerwise(
    spec: ModelSpec,
    dtype: str,
    longest: int,
    tokens: int,
    ram: int,
    streams: bool,
    device: int | None = None,
    unpacked: Unpacked | None = None,
) -> Plan:
    """The plan for reading `tokens` of many texts layer by layer, as many at once (`memory.block`) as memory allows.

    `streams`: experts may be read from disk, which costs nothing here, since each is used once.
    """
    (plan,) = _most_at_once(
        lambda count: [place(layerwise_memory(spec, dtype, longest, count, unpacked=unpacked), ram, device)],
        [streams], longest, tokens,
    )  # fmt: skip
    return plan


@dataclass(frozen=True, slots=True)
class Reader:
    """One of the models that read the same texts to score them; `streams` as above, `device` its budget there."""

    spec: ModelSpec
    dtype: str
    streams: bool
    device: int | None = None
    unpacked: Unpacked | None = None


def fit_side_by_side(readers: Sequence[Reader], longest: int, tokens: int, ram: int) -> list[Plan]:
    """The same for models that read and score the texts in one process: a layer of each in turn, in one budget.

    An earlier model takes what the later ones do not need at least, and each device budget is that of all.
    """

    def plans_for(count: int) -> list[Plan]:
        memories = [
            layerwise_memory(each.spec, each.dtype, longest, count, scored_at_once(each.spec), each.unpacked)
            for each in readers
        ]
        return _side_by_side(readers, memories, ram)

    return _most_at_once(plans_for, [each.streams for each in readers], longest, tokens)


def _side_by_side(readers: Sequence[Reader], memories: Sequence[MemoryEstimate], ram: int) -> list[Plan]:
    """Each plan has what its predecessors leave of the budgets; the process is there once."""
    plans: list[Plan] = []
    on_device = 0
    for index, (reader, memory) in enumerate(zip(readers, memories, strict=True)):
        rest = list(zip(readers, memories, strict=True))[index + 1 :]
        room = ram - sum(_least_ram(other, need) - need.process.bytes for other, need in rest)
        device = reader.device
        if device is not None:
            device -= on_device + sum(least_device(need) - DEVICE_CONTEXT for other, need in rest if other.device)
        plan = place(memory, room, device)
        plans.append(plan)
        ram -= plan.ram.total - memory.process.bytes
        on_device += max(0, plan.device.total - DEVICE_CONTEXT)
    return plans


def _least_ram(reader: Reader, memory: MemoryEstimate) -> int:
    plan = place(memory, 0, reader.device)
    return min(plan.full_ram, plan.least_ram) if reader.streams else plan.full_ram


def _most_at_once(
    plans_for: Callable[[int], list[Plan]], streams: Sequence[bool], longest: int, tokens: int
) -> list[Plan]:
    """Plans for as many tokens at once as all of them run with, at least `longest`."""
    plans = plans_for(tokens)
    while tokens > longest and not all(
        plan.fits or (streamed and plan.runs) for plan, streamed in zip(plans, streams, strict=True)
    ):
        tokens = max(longest, tokens // 2)
        plans = plans_for(tokens)
    return plans


def largest_context(spec: ModelSpec, dtype: str, batch: int, ram: int, device: int | None = None) -> int:
    """The longest context, up to the model's own, with which nothing is read from disk; 0 if none fits."""
    low, high = 0, spec.context_length
    while low < high:
        middle = (low + high + 1) // 2
        if place(estimate_memory(spec, dtype, middle, batch), ram, device).fits:
            low = middle
        else:
            high = middle - 1
    return low
