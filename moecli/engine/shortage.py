"""What is said where memory is too small: the whole sum, the shortage, and the smallest budget that would do."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from moecli.errors import NotEnoughMemory
from moecli.library.resolve import ModelRef
from moecli.planning.placement import Plan, least_device
from moecli.units import format_bytes, round_up

LESS_OF_THE_DEVICE = "end other programs that use it, or leave it less: --vram bounds it, --device cpu does without"


def ram_shortage(ref: ModelRef, plans: Sequence[Plan], streams: bool, buffers: int = 0) -> NotEnoughMemory:
    """None of a model's plans runs. `streams`: whether its experts can stay on disk.

    `buffers`: what making records of a checkpoint's experts takes, which a packed model does without.
    """
    first = plans[0]
    smallest = min(min(plan.full_ram, plan.least_ram) if streams else plan.full_ram for plan in plans)
    terms = " + ".join(f"{term.name} {format_bytes(term.bytes)}" for term in first.memory.terms if term.bytes)
    budget = first.ram_budget
    message = f"'{ref.typed}' in {first.memory.dtype} needs {format_bytes(first.full_ram)} of RAM and the budget is "
    message += f"{format_bytes(budget)} ({terms})"
    if streams:
        message += f"; even with every expert on disk it is {format_bytes(smallest - budget)} short"
        least = min(plans, key=lambda plan: plan.least_ram)
        packed = least.least_ram - buffers
        if buffers and packed < smallest:
            pack = f"moecli pack {ref.typed} --dtype {least.memory.dtype}"
            hint = f"{pack}, and --ram {round_up(packed)} is the least; a shorter --ctx needs less"
        else:
            hint = f"the smallest budget that works is --ram {round_up(smallest)}; a shorter --ctx needs less"
        return NotEnoughMemory(message, hint)
    least = min(plans, key=lambda plan: plan.full_ram)
    return NotEnoughMemory(
        f"{message}; it is {format_bytes(first.full_ram - budget)} short",
        f"a model without experts runs in RAM alone: --ram {round_up(smallest)} in {least.memory.dtype}; "
        "a shorter --ctx needs less",
    )


def side_by_side_shortage(refs: Sequence[ModelRef], plans: Sequence[Plan], least: int, budget: int) -> NotEnoughMemory:
    """Models do not run in one process: together they need `least` bytes."""
    named = " and ".join(f"'{ref.typed}' in {plan.memory.dtype}" for ref, plan in zip(refs, plans, strict=True))
    return NotEnoughMemory(
        f"{named} side by side need {format_bytes(least)} of RAM and the budget is {format_bytes(budget)}",
        f"--ram {round_up(least)} if there is so much; experts of packed models stay on disk: moecli pack "
        f"{refs[0].typed} --dtype {plans[0].memory.dtype}; a shorter --ctx needs less",
    )


def device_shortage(ref: ModelRef, plan: Plan, budget: int, device: torch.device) -> NotEnoughMemory:
    """The device's budget does not even hold what every token needs."""
    least = least_device(plan.memory)
    experts = " before any expert" if plan.memory.expert_count else ""
    return NotEnoughMemory(
        f"'{ref.name}' in {plan.memory.dtype} needs {format_bytes(least)} on {device}{experts}, "
        f"and the budget is {format_bytes(budget)}",
        f"--vram {round_up(least)} if there is so much; a shorter --ctx needs less; --device cpu needs none",
    )


def device_full(ref: ModelRef, plan: Plan, device: torch.device) -> NotEnoughMemory:
    """The device ran out of memory, and what would leave it has no other place."""
    return NotEnoughMemory(
        f"{device} ran out of memory: '{ref.name}' in {plan.memory.dtype} was to take "
        f"{format_bytes(plan.device.total)} of it",
        LESS_OF_THE_DEVICE,
    )
