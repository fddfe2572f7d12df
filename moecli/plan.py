"""Where everything goes: device, RAM and disk for given budgets. `memory` prints it, `run` obeys it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moecli.needs import CHUNK, DEVICE_CONTEXT, DEVICE_PROCESS, STAGED, Needs, needs, survey_needs
from moecli.spec import ModelSpec

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

    needs: Needs
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
    def runs(self) -> bool:
        """With experts read from disk if need be."""
        return min(self.full_ram, self.least_ram) <= self.ram_budget


def place(need: Needs, ram: int, device: int | None = None) -> Plan:
    """Cache and buffers first, then dense weights, then experts while there is room; the rest stays on disk.

    The device takes all of cache, buffers and dense weights, or nothing.
    """
    core = Tier(need.dense.bytes, need.kv.bytes, need.activations.bytes)
    if device is None or device < least_device(need):
        return _fill(need, ram, device, Tier(), replace(core, process=need.process.bytes), need.bytes_per_expert)
    count = min(need.expert_count, (device - least_device(need)) // max(1, need.slot_bytes))
    on_device = replace(
        core,
        process=DEVICE_CONTEXT,
        staging=_staged(need),
        experts=count,
        expert_bytes=count * need.slot_bytes,
    )
    return _fill(need, ram, device, on_device, Tier(process=need.process.bytes + DEVICE_PROCESS), need.slot_bytes)


def _fill(need: Needs, ram: int, device: int | None, on_device: Tier, core: Tier, size: int) -> Plan:
    """RAM has `core`, and takes the other experts: all, of `size` bytes each, or as many slots as there is room."""
    left = need.expert_count - on_device.experts
    table = need.table if core.dense and left else 0  # where experts are read from disk, so are its rows
    streaming = replace(core, dense=core.dense - table, staging=need.staging if left else 0)
    full, least = core.total + left * size, streaming.total
    if full <= ram:
        in_ram, on_disk = replace(core, experts=left, expert_bytes=left * size), Tier()
    else:
        count = max(0, min(left, (ram - least) // max(1, need.slot_bytes)))
        in_ram = replace(streaming, experts=count, expert_bytes=count * need.slot_bytes)
        on_disk = Tier(dense=table, experts=left - count, expert_bytes=(left - count) * need.bytes_per_expert)
    return Plan(need, ram, device, on_device, in_ram, on_disk, full_ram=full, least_ram=least)


def least_device(need: Needs) -> int:
    """What a device must hold to be of use: everything but experts, and those on their way through it."""
    return need.dense.bytes + need.kv.bytes + need.activations.bytes + DEVICE_CONTEXT + _staged(need)


def _staged(need: Needs) -> int:
    return min(need.expert_count, STAGED) * need.slot_bytes


def fit(spec: ModelSpec, dtype: str, context: int, ram: int, device: int | None = None) -> Plan:
    """The plan that a run obeys: smaller chunks of the prompt only where the usual ones would not fit at all."""
    chunk = CHUNK
    plan = place(needs(spec, dtype, context, chunk=chunk), ram, device)
    while not plan.runs and chunk > _LEAST_CHUNK:
        chunk //= 2
        plan = place(needs(spec, dtype, context, chunk=chunk), ram, device)
    return plan


def fit_survey(
    spec: ModelSpec, dtype: str, longest: int, tokens: int, ram: int, streams: bool, device: int | None = None
) -> Plan:
    """The plan for reading `tokens` of many texts layer by layer, as many at once (`needs.chunk`) as memory allows.

    `streams`: experts may be read from disk, which costs nothing here, since each is used once.
    """
    plan = place(survey_needs(spec, dtype, longest, tokens), ram, device)
    while not (plan.fits or (streams and plan.runs)) and tokens > longest:
        tokens = max(longest, tokens // 2)
        plan = place(survey_needs(spec, dtype, longest, tokens), ram, device)
    return plan


def largest_context(spec: ModelSpec, dtype: str, batch: int, ram: int, device: int | None = None) -> int:
    """The longest context, up to the model's own, with which nothing is read from disk; 0 if none fits."""
    low, high = 0, spec.context_length
    while low < high:
        middle = (low + high + 1) // 2
        if place(needs(spec, dtype, middle, batch), ram, device).fits:
            low = middle
        else:
            high = middle - 1
    return low
