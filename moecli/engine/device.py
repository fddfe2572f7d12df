"""Which device computes, and what memory it has free."""

from __future__ import annotations

import torch

from moecli.errors import UsageError
from moecli.experts.arena import CPU
from moecli.planning.memory import DEVICE_CONTEXT

_MARGIN = 256 * 2**20  # left to the screen and to other programs


def choose_device(asked: str) -> torch.device:
    """`auto` is the first GPU if there is one. UsageError for a device that this machine or this torch lacks."""
    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return CPU
    if not torch.cuda.is_available():
        reason = "torch is built without CUDA" if torch.version.cuda is None else "torch finds no GPU"
        raise UsageError(f"--device {asked}: {reason}", "--device cpu computes without one")
    number = int(asked.partition(":")[2] or 0)
    if number >= torch.cuda.device_count():
        raise UsageError(f"--device {asked}: there are {torch.cuda.device_count()} GPUs", "they count from cuda:0")
    return torch.device("cuda", number)


def free_vram(device: torch.device) -> int:
    """Bytes this process may hold on the device in all: what is free, less a margin, and its own context."""
    free, _ = torch.cuda.mem_get_info(device)  # makes the context first
    return max(0, free - max(_MARGIN, free // 20)) + DEVICE_CONTEXT
