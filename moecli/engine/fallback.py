"""When a device's memory runs out after all: the same model once more, with less of it there."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable

import torch

from moecli.engine.device import ran_out
from moecli.engine.loaded import LoadedModel, OpenedModel
from moecli.engine.shortage import device_full
from moecli.planning.memory import DEVICE_PROCESS
from moecli.planning.placement import Plan, place
from moecli.store.progress import Progress, silent

_LOG = logging.getLogger(__name__)
Warn = Callable[[str], None]


def load(opened: OpenedModel, plan: Plan, progress: Progress = silent, warn: Warn = _LOG.warning) -> LoadedModel:
    """Read the weights as planned, or with less on the device where its memory runs out; `warn` is told of each step.

    NotEnoughMemory where nothing less is possible.
    """
    while True:
        try:
            return opened.load(plan, progress)
        except RuntimeError as error:
            if not ran_out(error):
                raise
        plan = _step_down(opened, plan, warn)  # the error is gone by now, and with it what its frames held
        _free()


def reload(loaded: LoadedModel, warn: Warn = _LOG.warning) -> LoadedModel:
    """The same model with less on the device, which has run out of memory: `loaded` gives up all of its own, and its
    cache is lost. NotEnoughMemory, and nothing is given up, where nothing less is possible.
    """
    plan = _step_down(loaded.opened, loaded.plan, warn)
    loaded.decoder.release()
    loaded.cache.layers.clear()
    _free()
    return load(loaded.opened, plan, warn=warn)


def _step_down(opened: OpenedModel, plan: Plan, warn: Warn) -> Plan:
    """Half as many experts on the device; of one that has none, nothing at all, unless it was named."""
    held, memory = plan.device.experts, plan.memory
    steps: list[tuple[Plan, str]] = []
    if held:
        fewer = held // 2
        smaller = place(memory, plan.ram_budget, plan.device.total - (held - fewer) * memory.slot_bytes)
        steps.append((smaller, f"it goes on with {fewer:,} experts there instead of {held:,}"))
    if opened.options.device == "auto":
        smaller = place(memory, plan.ram_budget - DEVICE_PROCESS, None)  # what CUDA took of RAM it keeps
        steps.append((smaller, "the processor goes on without it"))
    for smaller, consequence in steps:
        if smaller.fits or (opened.model.streams and smaller.runs):
            warn(f"{opened.asked_device} ran out of memory: {consequence}")
            return smaller
    raise device_full(opened.ref, plan, opened.asked_device)


def _free() -> None:
    """What nobody holds goes back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
