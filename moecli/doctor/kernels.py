"""The kernels: which one multiplies each format here, and why there may be no native one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from moecli import settings
from moecli.doctor.problem import Problem
from moecli.errors import UsageError
from moecli.formats import FORMATS


@dataclass(frozen=True, slots=True)
class Kernels:
    """`formats` has the kernel of each format by kind of device; none where MOECLI_KERNEL or MOECLI_ISA is refused."""

    formats: Mapping[str, Mapping[str, str]]
    asked: str | None  # the value of MOECLI_KERNEL
    refusal: Problem | None  # of that value, or of MOECLI_ISA's
    isa: str | None  # the instruction set in use
    isas: tuple[str, ...]  # those that could be
    openmp: bool  # whether native kernels share torch's threads; else they have one
    absence: str | None  # why there are no native kernels
    compiler: str | None  # to build them with


def look() -> Kernels:
    """ImportError or OSError where torch does not work."""
    import torch

    from moecli.kernels import choice, library

    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    formats, isa, refusal = {}, None, None
    try:
        isa = library.isa()
        formats = {device: {dtype: choice.chosen(dtype, device) for dtype in FORMATS} for device in devices}
    except UsageError as error:
        refusal = Problem.of(error)
    return Kernels(
        formats=formats,
        asked=settings.read("MOECLI_KERNEL"),
        refusal=refusal,
        isa=isa,
        isas=library.isas(),
        openmp=library.shares_threads(),
        absence=library.absence(),
        compiler=next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None),
    )
