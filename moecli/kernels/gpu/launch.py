"""What a launch needs to know of the card, and on which card it goes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as far as the shape of a launch depends on it; `shared`: bytes of shared memory that a program can have."""

    capability: tuple[int, int]
    processors: int
    shared: int

    def has_tensor_cores(self, size: int) -> bool:
        """For numbers of `size` bytes, that Triton knows: none for float32, nor before Ampere."""
        return size == 2 and self.capability >= (8, 0)

    @property
    def has_warp_groups(self) -> bool:
        """Whether four warps together multiply 64 rows, from shared memory: the chips of data centres since Hopper."""
        return 9 <= self.capability[0] < 12


_INTERPRETED = Card((8, 0), 4, 163 * 2**10)


@cache
def card(device: torch.device) -> Card:
    """The card that `device` is; where Triton interprets, a small one."""
    if device.type != "cuda":
        return _INTERPRETED
    from triton.runtime import driver

    index = torch.cuda.current_device() if device.index is None else device.index
    shared = driver.active.utils.get_device_properties(index)["max_shared_mem"]
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return Card(torch.cuda.get_device_capability(device), processors, shared)


def on(device: torch.device) -> AbstractContextManager[object]:
    """Kernels launched inside go to this device: Triton asks for the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
