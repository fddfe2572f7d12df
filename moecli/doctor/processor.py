"""The processor: its name, the instructions that kernels ask for, and the threads that would compute."""

from __future__ import annotations

import math
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import psutil

from moecli import settings
from moecli.doctor.problem import Problem
from moecli.errors import UsageError
from moecli.planning import cgroups, machine

# As Linux spells what native.c asks the processor for.
_INSTRUCTIONS = "avx512f avx512bw avx512vl avx512dq avx512_vnni avx_vnni avx2 fma f16c asimddp".split()


@dataclass(frozen=True, slots=True)
class Processor:
    """`usable_cores` is what affinity and quota leave of the logical ones; no `threads` if their number is refused."""

    name: str
    architecture: str
    instruction_sets: tuple[str, ...]
    physical_cores: int | None
    logical_cores: int
    usable_cores: int
    cpu_quota: float | None
    threads: int | None
    threads_asked: str | None  # the value of MOECLI_THREADS
    refusal: Problem | None  # of that value


def look() -> Processor:
    described = _described()
    logical = psutil.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    quota = cgroups.cpu_quota()
    threads, refusal = None, None
    try:
        threads = machine.compute_threads()
    except UsageError as error:
        refusal = Problem.of(error)
    present = _said(described, "flags|Features").split()
    return Processor(
        name=_said(described, "model name") or platform.processor(),
        architecture=platform.machine(),
        instruction_sets=tuple(name for name in _INSTRUCTIONS if name in present),
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=logical,
        usable_cores=affinity if quota is None else min(affinity, max(1, math.ceil(quota))),
        cpu_quota=quota,
        threads=threads,
        threads_asked=settings.read("MOECLI_THREADS"),
        refusal=refusal,
    )


def _said(described: str, key: str) -> str:
    """Of the first processor."""
    match = re.search(rf"^(?:{key})\s*: *(.*)", described, re.MULTILINE)
    return match[1] if match else ""


def _described() -> str:
    """What Linux says of its processors; nothing elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
