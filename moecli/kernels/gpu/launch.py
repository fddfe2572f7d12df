"""What a launch needs to know of the card, and on which card it goes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as far as the shape of a launch depends on it; `shared` memory in bytes, that a program can have."""

    capability: tuple[int, int]
    processors: int
    shared: int


_INTERPRETED = Card((8, 0), 8, 163 * 2**10)


@cache
def card(device: torch.device) -> Card:
    """The card that `device` is; where Triton interprets, a small one."""
    if device.type != "cuda":
        return _INTERPRETED
    properties = torch.cuda.get_device_properties(device)
    return Card(
        (properties.major, properties.minor),
        properties.multi_processor_count,
        properties.shared_memory_per_block_optin,
    )


def on(device: torch.device) -> AbstractContextManager[object]:
    """Kernels launched inside go to this device: Triton asks for the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
