"""The whole examination: each part of the machine looked at once, none stopping the others."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from moecli import settings
from moecli.doctor import disks, graphics, kernels, libraries, memory, models, processor
from moecli.planning import measured

_SECRET = "HF_TOKEN"


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found. `kernels` is None where torch cannot be imported."""

    software: libraries.Software
    processor: processor.Processor
    kernels: kernels.Kernels | None
    memory: memory.Memory
    graphics: graphics.Graphics
    disks: tuple[disks.Disk, ...]
    hub_cache: models.Held
    packed: models.Held
    built_in: models.BuiltIn
    environment: Mapping[str, str]
    presets: tuple[str, ...] = ()  # options that the user's file adds, a line a command


def examine(measure: bool) -> Examination:
    """Takes a second or two to import torch, and as much to `measure` memory and disks."""
    software, cores = libraries.look(), processor.look()
    failure = software.torch_failure
    refusal = None if measure else "not asked for"
    threads = min(cores.threads or 1, cores.usable_cores)
    ram = memory.look(threads, "torch cannot be imported" if failure else refusal)
    packed, stores = models.packed_models()
    return Examination(
        software=software,
        processor=cores,
        kernels=None if failure else kernels.look(),
        memory=ram,
        graphics=graphics.look(failure, measure),
        disks=disks.look(() if failure else stores, refusal),
        hub_cache=models.hub_models(),
        packed=packed,
        built_in=models.built_in(ram.budget_bytes),
        environment=_environment(),
        presets=tuple(shlex.join([each.command, *each.options]) for each in settings.presets()),
    )


def remember(found: Examination) -> None:
    """Keep the measured bandwidths for the forecasts to come."""
    packed = (each for each in found.disks if any(folder.purpose == disks.PACKED for folder in each.folders))
    disk = next((each.read_bytes_per_s for each in packed), None)
    measured.remember(ram=found.memory.read_bytes_per_s, disk=disk)


def _environment() -> dict[str, str]:
    """The variables that are set. A token is never shown, nor what an address says before its @."""
    values = {each.name: value for each in settings.VARIABLES if (value := settings.read(each.name))}
    return {name: "set" if name == _SECRET else re.sub(r"//[^/@]*@", "//...@", value) for name, value in values.items()}
