"""Which device computes, what memory it has free, how fast it is, and whether that memory has run out."""

from __future__ import annotations

from dataclasses import replace

import torch

from moecli.errors import UsageError
from moecli.experts.arena import CPU
from moecli.experts.rates import card_speeds
from moecli.kernels import gpu
from moecli.planning import measured
from moecli.planning.measured import Card
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


def examine(device: torch.device, again: bool = False) -> Card:
    """What a CUDA device has free now, and how fast it is: measured once, or `again`, then remembered."""
    name, known = torch.cuda.get_device_name(device), measured.recall_card()
    free = free_vram(device)
    if known is not None and known.name == name and not again:
        card = replace(known, free=free, kernels=gpu.serves(device))
    else:
        card = Card(name, free, gpu.serves(device), card_speeds(device))
        torch.cuda.empty_cache()  # what that took is the run's
    measured.remember(card=card)
    return card


def ran_out(error: RuntimeError) -> bool:
    """Whether an error says that a device has no memory left; torch's allocator has a type for it, libraries a word."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in said or "alloc_failed" in said
