"""How a machine is shown: facts in groups, then what is wrong, one line each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from moecli import settings
from moecli.doctor.disks import Disk
from moecli.doctor.examination import Examination
from moecli.doctor.kernels import Kernels
from moecli.doctor.libraries import Software
from moecli.doctor.memory import Memory
from moecli.doctor.models import Held
from moecli.doctor.problem import Problem
from moecli.doctor.processor import Processor
from moecli.output import tables
from moecli.planning.choice import DEVICE_KERNELS
from moecli.units import format_bytes

_Row = tuple[str, str]


def screen(found: Examination, wrong: Sequence[Problem], quiet: bool, no_color: bool) -> None:
    """Print all facts and what is wrong on stdout; with `quiet` only what is wrong."""
    to = tables.console(no_color)
    if not quiet:
        software = found.software
        head = tables.title(f"moecli {software.moecli}", f"Python {software.python}, {software.system}")
        tables.show(to, head, tables.Facts(list(_rows(found))))
        to.print()
    for problem in wrong:
        line = Text.assemble(("problem:", "bold red"), f" {problem.what}; ", ("hint:", "bold"), f" {problem.hint}")
        to.print(line, soft_wrap=True)
    if not wrong and not quiet:
        to.print("nothing is wrong")


def _rows(found: Examination) -> Iterator[_Row]:
    yield "libraries", _libraries(found.software)
    yield from _processor(found.processor)
    if found.kernels:
        yield from _kernels(found.kernels)
    yield from _memory(found.memory)
    for gpu in found.graphics.gpus:
        free = "" if gpu.free_bytes is None else f", {format_bytes(gpu.free_bytes)} free"
        size = f"{format_bytes(gpu.total_bytes)}{free}"
        yield "GPU", f"{gpu.name}, {size}, compute capability {gpu.compute_capability}"
        if not gpu.failure:
            whose = (
                "by moecli's own kernels" if gpu.kernels else "left to the processor, no kernels of moecli run there"
            )
            yield "", f"{', '.join(DEVICE_KERNELS)}: {whose}"
        if gpu.memory_bytes_per_s and gpu.up_bytes_per_s and gpu.down_bytes_per_s:
            link = f"{_rate(gpu.up_bytes_per_s)} to it, {_rate(gpu.down_bytes_per_s)} back"
            yield "", f"copies {_rate(gpu.memory_bytes_per_s)} of its own memory; its link {link}"
    if found.graphics.absence:
        yield "GPU", f"none: {found.graphics.absence}"
    for disk in found.disks:
        yield from _disk(disk)
    takes = found.built_in.takes_bytes
    yield "models", "built in: " + (f"a run takes {format_bytes(takes)}" if takes else "damaged")
    yield "", f"packed: {_held(found.packed)}"
    yield "", f"Hub cache: {_held(found.hub_cache)}"
    yield "environment", ", ".join(f"{name}={value}" for name, value in found.environment.items()) or "nothing set"
    if found.presets:
        yield "config", "\n".join([f"{settings.config()} adds", *found.presets])


def _libraries(software: Software) -> str:
    build = f" ({software.torch_build})" if software.torch_build else ""
    versions = {name: library.version or "missing" for name, library in software.libraries.items()}
    return ", ".join(f"{name} {version}{build if name == 'torch' else ''}" for name, version in versions.items())


def _processor(processor: Processor) -> Iterator[_Row]:
    sets = " ".join(processor.instruction_sets)
    yield "processor", ", ".join(filter(None, (processor.name, processor.architecture, sets)))
    quota = "" if processor.cpu_quota is None else f" (a cgroup allows the time of {processor.cpu_quota:g})"
    physical = processor.physical_cores or "an unknown number of"
    cores = f"{physical} physical, {processor.logical_cores} logical, {processor.usable_cores} usable"
    yield "cores", f"{cores} here{quota}"
    if processor.threads is not None:
        reason = "MOECLI_THREADS" if processor.threads_asked else "one per physical core"
        yield "threads", f"{processor.threads} to compute with: {reason}"


def _kernels(kernels: Kernels) -> Iterator[_Row]:
    label = "kernels"
    for device, formats in kernels.formats.items():
        for kernel in dict.fromkeys(formats.values()):
            served = [dtype for dtype, each in formats.items() if each == kernel]
            names = "all formats" if len(served) == len(formats) else ", ".join(served)
            yield label, f"{names}: {_kernel(kernels, kernel)}{'' if device == 'cpu' else ' on the GPU'}"
            label = ""


def _kernel(kernels: Kernels, kernel: str) -> str:
    """The kernel's name, and why it is this one."""
    if kernels.asked:
        return f"{kernel} (MOECLI_KERNEL={kernels.asked})"
    if kernel == "native":
        others = [name for name in kernels.isas if name != kernels.isa]
        return f"native, by {kernels.isa}" + (f" (here too: {', '.join(others)})" if others else "")
    return "bitsandbytes" if kernel == "bnb" else kernel


def _memory(memory: Memory) -> Iterator[_Row]:
    limit = "" if memory.limit_bytes is None else f", a cgroup allows {format_bytes(memory.limit_bytes)}"
    sizes = f"{format_bytes(memory.total_bytes)}, {format_bytes(memory.available_bytes)} available{limit}"
    yield "memory", f"{sizes}; a run may take {format_bytes(memory.budget_bytes)}"
    yield "", _speed(memory.read_bytes_per_s, memory.not_measured)
    swap = f"{format_bytes(memory.swap_bytes)}, {format_bytes(memory.swap_free_bytes)} free"
    yield "swap", swap if memory.swap_bytes else "none"


def _disk(disk: Disk) -> Iterator[_Row]:
    label = "disk"
    for folder in disk.folders:
        yield label, f"{folder.purpose}: {folder.path}" + (" (not writable)" if folder.obstacle else "")
        label = ""
    kind = f"{disk.file_system}, " if disk.file_system else ""
    yield "", f"{kind}{format_bytes(disk.free_bytes)} of {format_bytes(disk.total_bytes)} free"
    way = {True: ", past the page cache", False: ", through the page cache: no O_DIRECT here", None: ""}[disk.direct_io]
    source = f", on {disk.measured_on}" if disk.measured_on else ""
    yield "", _speed(disk.read_bytes_per_s, disk.not_measured) + source + way


def _speed(bytes_per_s: float | None, reason: str | None) -> str:
    return f"speed not measured: {reason}" if bytes_per_s is None else f"reads {format_bytes(bytes_per_s)}/s"


def _rate(bytes_per_s: float) -> str:
    return f"{format_bytes(bytes_per_s)}/s"


def _held(held: Held) -> str:
    if held.failure:
        return "cannot be read"
    unfinished = f"; {held.unfinished} unfinished, {format_bytes(held.unfinished_bytes)}" if held.unfinished else ""
    return f"{held.models}, {format_bytes(held.bytes)}{unfinished}" if held.models else "none"
