"""The memory: what there is, what a run would take of it, and how fast all threads together read it."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from moecli.planning import cgroups, machine

_LEAST = 2**30  # below this free, nothing is measured


@dataclass(frozen=True, slots=True)
class Memory:
    """`budget_bytes` is what `run` takes without --ram, `limit_bytes` that of a cgroup."""

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None
    budget_bytes: int
    swap_bytes: int
    swap_free_bytes: int
    read_bytes_per_s: float | None
    not_measured: str | None  # why


def look(threads: int, refusal: str | None) -> Memory:
    """Measured with so many threads, unless there is a reason not to measure."""
    memory, swap, budget = psutil.virtual_memory(), psutil.swap_memory(), machine.free_ram()
    reason = refusal or ("too little is free" if budget < _LEAST else None)
    return Memory(
        total_bytes=memory.total,
        available_bytes=memory.available,
        limit_bytes=cgroups.memory_limit(),
        budget_bytes=budget,
        swap_bytes=swap.total,
        swap_free_bytes=swap.free,
        read_bytes_per_s=None if reason else _read_speed(threads),
        not_measured=reason,
    )


def _read_speed(threads: int) -> float:
    import torch

    from moecli.kernels.bandwidth import read_bandwidth

    torch.set_num_threads(threads)
    return read_bandwidth()
