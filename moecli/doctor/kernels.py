"""The kernels: which one multiplies each packed format here, and why there may be no native one."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moecli import settings
from moecli.doctor.problem import Problem
from moecli.errors import UsageError

_PACKED = ("q4", "q8", "nf4", "int8")


@dataclass(frozen=True, slots=True)
class Kernels:
    """`formats` has the kernel of each format by kind of device; none where MOECLI_KERNEL names no kernel."""

    formats: Mapping[str, Mapping[str, str]]
    asked: str | None  # the value of MOECLI_KERNEL
    refusal: Problem | None  # of that value
    tier: str | None  # the instructions in use
    tiers: tuple[str, ...]  # those that could be
    openmp: bool  # whether native kernels share torch's threads; else they have one
    absence: str | None  # why there are no native kernels
    compiler: str | None  # to build them with


def look() -> Kernels:
    """ImportError or OSError where torch does not work."""
    import torch

    from moecli.kernels import choice, library

    found = library.library()
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    formats, refusal = {}, None
    try:
        formats = {device: {dtype: choice.chosen(dtype, device) for dtype in _PACKED} for device in devices}
    except UsageError as error:
        refusal = Problem.of(error)
    return Kernels(
        formats=formats,
        asked=settings.read("MOECLI_KERNEL"),
        refusal=refusal,
        tier=library.tier(),
        tiers=library.tiers(),
        openmp=found is not None and found.parallel is not None,
        absence=None if found else absence(library.FILE),
        compiler=next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None),
    )


def absence(file: Path) -> str:
    """Why the kernels in this file are not used."""
    if not file.exists():
        return "were not built"
    try:
        ctypes.CDLL(str(file))
    except OSError as error:
        return f"cannot be loaded ({error})"
    return "are those of another version"
