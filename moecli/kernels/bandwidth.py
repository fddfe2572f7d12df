"""How fast this machine reads its memory: the limit of decoding, measured."""

from __future__ import annotations

import time

import torch

_SIZE = 256 * 2**20  # far beyond any cache
_TRIES = 5


def read_bandwidth(size: int = _SIZE) -> float:
    """Bytes per second that all compute threads together read, the best of a few tries. Takes `size` bytes of RAM."""
    numbers = torch.ones(size // 8, dtype=torch.int64)
    times = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        numbers.sum()
        times.append(time.perf_counter() - began)
    return numbers.nbytes / min(times)
