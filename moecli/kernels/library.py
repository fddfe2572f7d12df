"""The compiled library of native kernels: whether it can be used, its instruction sets, and calling it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from ctypes import c_char_p, c_int, c_void_p
from dataclasses import dataclass
from functools import cache
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch

from moecli import settings
from moecli.errors import UsageError
from moecli.kernels import abi
from moecli.kernels.built import FILE as FILE

FUNCTIONS = (
    "linear", "feed_forward", "gated", "weighted_sum", "pack", "repack", "decode_step", "route", "combine",
    "prompt_attention", "mix",
)  # fmt: skip

_VERSION = 9  # of what the functions do: moecli_version() of a library where they do the same
_NO_MEMORY = 1  # enum status of native.h


@dataclass(slots=True)
class Library:
    """A loaded library: its functions, torch's OpenMP entry points if found, and its instruction sets.

    `isas` has those that this processor can run, best first, with the number the library knows each by; `isa` is the
    one that calls are computed with.
    """

    functions: Mapping[str, Callable[[int, Any], int]]
    parallel: int | None
    barrier: int | None
    isas: dict[str, int]
    isa: str

    def thread_pool(self) -> abi.ThreadPool:
        """torch's threads, as many as torch itself would take now, for a structure to be called with."""
        return abi.ThreadPool(self.parallel, self.barrier, torch.get_num_threads())

    def call(self, function: str, arguments: ctypes.Structure) -> int:
        """Call one of FUNCTIONS and return its status. MemoryError where it found no memory."""
        status = self.functions[function](self.isas[self.isa], ctypes.byref(arguments))
        if status == _NO_MEMORY:
            raise MemoryError
        return status


def isas() -> tuple[str, ...]:
    """The instruction sets the library was built for and this processor can run, best first; none without a library."""
    found = _found()
    return () if isinstance(found, str) else tuple(found.isas)


def isa() -> str | None:
    """The instruction set in use: MOECLI_ISA or the best. None without a library; UsageError as from `library`."""
    found = library()
    return found.isa if found else None


def use_isa(name: str) -> None:
    """Compute with another instruction set from now on; no result changes by a bit. ValueError if `isas` lacks it."""
    found = loaded()
    if name not in found.isas:
        raise ValueError(f"no instruction set {name} here, but {', '.join(found.isas)}")
    found.isa = name


def loaded() -> Library:
    """The library, for callers that saw it is there. ValueError if it is not."""
    found = library()
    if found is None:
        raise ValueError("the native kernels are not built")
    return found


@cache
def library() -> Library | None:
    """The library that came with this package, loaded once; None if it cannot be used (`absence` says why).

    UsageError if MOECLI_ISA is set to something that is not in `isas`.
    """
    found, asked = _found(), settings.read("MOECLI_ISA")
    if asked is not None and asked not in isas():
        here = f"none: the native kernels {found}" if isinstance(found, str) else ", ".join(found.isas)
        raise UsageError(f"MOECLI_ISA is '{asked}'", f"the instruction sets here: {here}")
    if isinstance(found, str):
        return None
    found.isa = asked or next(iter(found.isas))
    return found


def absence() -> str | None:
    """Why there is no library to use, as the rest of a sentence that begins "the native kernels"; None if there is."""
    found = _found()
    return found if isinstance(found, str) else None


def shares_threads() -> bool:
    """Whether the library computes with torch's threads; where torch's OpenMP runtime is not found it has but one."""
    found = _found()
    return not isinstance(found, str) and found.parallel is not None


def open_library(file: Path) -> Library | str:
    """Load a library and compare its structures with `abi`. The reason, as by `absence`, if it cannot be used."""
    if not file.exists():
        return "were not built"
    try:
        opened = ctypes.CDLL(str(file))
        if opened.moecli_version() != _VERSION:
            return "are those of another version"
        functions = {name: opened[f"moecli_{name}"] for name in FUNCTIONS}
        layout, name_of = abi.layout_of(opened), opened["moecli_isa"]
    except OSError as error:
        return f"cannot be loaded ({error})"
    except AttributeError:
        return "are those of another version"
    if difference := abi.difference(layout):
        return f"have other structures ({difference})"
    name_of.restype = c_char_p
    for function in functions.values():
        function.argtypes = (c_int, c_void_p)
    names = takewhile(lambda name: name is not None, map(name_of, count()))
    usable = {name.decode(): index for index, name in enumerate(names) if name}
    return Library(functions, *openmp(), usable, next(iter(usable)))


def openmp() -> tuple[int | None, int | None]:
    """The addresses of GOMP_parallel and GOMP_barrier in the OpenMP runtime that torch itself uses; None if not found.

    A second runtime would fight it for the cores.
    """
    suffix = "dylib" if sys.platform == "darwin" else "so"
    try:
        runtime = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"))
        addresses = [ctypes.cast(runtime[name], c_void_p).value for name in ("GOMP_parallel", "GOMP_barrier")]
    except (OSError, AttributeError):
        return None, None
    return addresses[0], addresses[1]


@cache
def _found() -> Library | str:
    return open_library(FILE)
