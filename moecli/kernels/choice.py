"""Which kernel serves: native C, bitsandbytes, Triton or torch; MOECLI_KERNEL forces one where it can serve."""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch

from moecli import settings
from moecli.errors import UsageError
from moecli.formats import SEARCHED
from moecli.kernels import gpu, native

Kernel = Literal["native", "triton", "bnb", "torch"]

_NAMES: tuple[Kernel, ...] = ("native", "triton", "bnb", "torch")
_BITSANDBYTES = frozenset({"nf4", "int8"})


def serves(kernel: Kernel, dtype: str, device: torch.device) -> bool:
    """Whether products of this format go to this kernel on this device."""
    return kernel == chosen(dtype, device.type)


@cache
def chosen(dtype: str, device: str) -> Kernel:
    """The kernel of a format. Importing bitsandbytes takes seconds, so on the CPU it must be asked for."""
    asked = forced()
    if dtype in SEARCHED and on_gpu(torch.device(device)):
        return "triton"
    if device == "cpu" and asked in (None, "native") and native.available(dtype):
        return "native"
    if dtype in _BITSANDBYTES and (asked == "bnb" or (asked is None and device != "cpu")):
        return "bnb"
    return "torch"


def on_gpu(device: torch.device) -> bool:
    """Whether Triton's kernels compute there; where they are interpreted, only if they are asked for."""
    return forced() in ((None, "triton") if device.type == "cuda" else ("triton",)) and gpu.serves(device)


def forced() -> Kernel | None:
    """What MOECLI_KERNEL says. UsageError if it is no kernel."""
    name = settings.read("MOECLI_KERNEL")
    if name is None:
        return None
    for known in _NAMES:
        if name == known:
            return known
    raise UsageError(f"MOECLI_KERNEL is '{name}'", f"it takes {', '.join(_NAMES)}")
