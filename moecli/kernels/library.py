"""The compiled library of native kernels: whether it is there, its instruction sets, and calling it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from ctypes import c_char_p, c_int, c_int32, c_void_p
from dataclasses import dataclass
from functools import cache
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch

FILE = Path(__file__).with_name("_native.so")
FUNCTIONS = ("linear", "feed_forward", "gated", "pack", "pass", "route", "conclude")

_VERSION = 2  # of the structures in native.py and token.py: moecli_version() of a library that has the same
_NO_MEMORY = 1


class Team(ctypes.Structure):
    """torch's OpenMP runtime, by two of its entry points, and how many threads to take."""

    _fields_ = (("parallel", c_void_p), ("barrier", c_void_p), ("threads", c_int32))


@dataclass(slots=True)
class Library:
    """The loaded library, its usable tiers by name, and the one in use."""

    functions: Mapping[str, Callable[[int, Any], int]]
    parallel: int | None
    barrier: int | None
    tiers: dict[str, int]
    tier: str

    def team(self) -> Team:
        return Team(self.parallel, self.barrier, torch.get_num_threads())

    def call(self, function: str, arguments: ctypes.Structure) -> int:
        """What the function says, but MemoryError where it found none."""
        outcome = self.functions[function](self.tiers[self.tier], ctypes.byref(arguments))
        if outcome == _NO_MEMORY:
            raise MemoryError
        return outcome


def tiers() -> tuple[str, ...]:
    """The instruction sets the library was built for and this processor has, best first."""
    found = library()
    return tuple(found.tiers) if found else ()


def tier() -> str | None:
    """The one in use: the best, unless another was asked for."""
    found = library()
    return found.tier if found else None


def use_tier(name: str) -> None:
    """Compute with another one from now on. No result changes by a bit."""
    found = loaded()
    if name not in found.tiers:
        raise ValueError(f"no tier {name} here, but {', '.join(found.tiers)}")
    found.tier = name


def loaded() -> Library:
    """The library, where it was seen to be there."""
    found = library()
    if found is None:
        raise ValueError("the native kernels are not built")
    return found


@cache
def library() -> Library | None:
    """None where it was not built, or for another version of this file."""
    try:
        file = ctypes.CDLL(str(FILE))
        if file.moecli_version() != _VERSION:
            return None
        functions = {name: file[f"moecli_{name}"] for name in FUNCTIONS}
    except (OSError, AttributeError):
        return None
    file.moecli_tier.restype = c_char_p
    for function in functions.values():
        function.argtypes = (c_int, c_void_p)
    names = takewhile(lambda name: name is not None, map(file.moecli_tier, count()))
    usable = {name.decode(): index for index, name in enumerate(names) if name}
    return Library(functions, *openmp(), usable, next(iter(usable)))


def openmp() -> tuple[int | None, int | None]:
    """Two entry points of the OpenMP runtime that torch itself uses; a second runtime would fight it for the cores."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    try:
        runtime = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"))
        addresses = [ctypes.cast(runtime[name], c_void_p).value for name in ("GOMP_parallel", "GOMP_barrier")]
    except (OSError, AttributeError):
        return None, None
    return addresses[0], addresses[1]
