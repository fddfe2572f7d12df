"""What is wrong with a machine, judged from what was found."""

from __future__ import annotations

from collections.abc import Iterator

from moecli.doctor.disks import ROOM, Disk
from moecli.doctor.examination import Examination
from moecli.doctor.kernels import Kernels
from moecli.doctor.libraries import Software
from moecli.doctor.models import Held
from moecli.doctor.problem import Problem
from moecli.doctor.processor import Processor
from moecli.units import format_bytes


def problems(found: Examination) -> Iterator[Problem]:
    """All of it, what everything else stands on first. A machine without a GPU is in order."""
    yield from _software(found.software)
    yield from _processor(found.processor)
    if found.kernels is not None:
        yield from _kernels(found.kernels)
    for gpu in found.graphics.gpus:
        if gpu.failure:
            yield Problem(f"{gpu.name} does not answer: {gpu.failure}", "--device cpu computes without it")
    yield from _built_in(found)
    yield from _held("Hub cache", found.hub_cache, "HF_HOME or HF_HUB_CACHE")
    yield from _held("packed models", found.packed, "MOECLI_HOME")
    for disk in found.disks:
        yield from _disk(disk, readable=found.packed.failure is None)


def _software(software: Software) -> Iterator[Problem]:
    for name, library in software.libraries.items():
        hint = f"pip install --upgrade '{name}{f'>={library.least}' if library.least else ''}'"
        if library.version is None:
            yield Problem(f"{name} is not installed", hint)
        elif library.outdated:
            yield Problem(f"{name} {library.version} is older than {library.least}", hint)
    if software.torch_failure and software.libraries["torch"].version is not None:
        yield Problem(f"torch cannot be imported: {software.torch_failure}", "pip install --force-reinstall torch")


def _processor(processor: Processor) -> Iterator[Problem]:
    if processor.refusal:
        yield processor.refusal
    usable, threads = processor.usable_cores, processor.threads or 0
    if threads > usable:
        reason = "unset MOECLI_THREADS, or set it to at most" if processor.threads_asked else "set MOECLI_THREADS to"
        yield Problem(f"{threads} compute threads for {usable} usable cores wait for each other", f"{reason} {usable}")


def _kernels(kernels: Kernels) -> Iterator[Problem]:
    if kernels.refusal:
        yield kernels.refusal
    if kernels.absence:
        first = "" if kernels.compiler else "install a C compiler such as gcc, then "
        yield Problem(
            f"the native kernels {kernels.absence}: torch decodes packed models several times slower",
            f"{first}reinstall moecli (pip install --force-reinstall --no-deps --no-cache-dir ...)",
        )
    elif not kernels.openmp:
        yield Problem(
            "torch's OpenMP runtime is not where it should be: the native kernels compute with one thread",
            "install torch from PyPI or pytorch.org, whose packages hold it",
        )


def _built_in(found: Examination) -> Iterator[Problem]:
    model, budget = found.built_in, found.memory.budget_bytes
    if model.failure:
        yield Problem(f"the built-in model is damaged: {model.failure}", "reinstall moecli")
    elif not model.fits:
        sizes = f"the built-in model takes {format_bytes(model.takes_bytes or 0)} of memory, {format_bytes(budget)}"
        yield Problem(f"{sizes} may be used", "end other programs, or raise the limit of the container")


def _held(place: str, held: Held, variable: str) -> Iterator[Problem]:
    if held.failure:
        yield Problem(f"{place}: {held.failure}", f"make it readable, or set {variable} to another folder")


def _disk(disk: Disk, readable: bool) -> Iterator[Problem]:
    for folder in disk.folders:
        if folder.obstacle and folder.purpose == "packed models" and readable:
            yield Problem(
                f"packed models cannot be written to {folder.path}: {folder.obstacle}",
                "make it writable, or set MOECLI_HOME to another folder",
            )
    if disk.free_bytes < ROOM and not all(folder.obstacle for folder in disk.folders):
        yield Problem(
            f"the disk of {disk.folders[0].path} is nearly full: {format_bytes(disk.free_bytes)} free",
            "moecli list shows what there is to remove, moecli rm MODEL removes it",
        )
