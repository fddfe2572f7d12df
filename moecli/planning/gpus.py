"""Common GPUs: memory and bandwidth, as their makers print them."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from moecli.errors import UsageError


@dataclass(frozen=True, slots=True)
class Gpu:
    """One model. `memory` in bytes, `bandwidth` in bytes per second."""

    name: str
    memory: int
    bandwidth: float


GPUS = {
    name: Gpu(name, gib * 2**30, gb_per_s * 1e9)
    for name, gib, gb_per_s in (
        ("t4", 16, 320), ("l4", 24, 300), ("a10", 24, 600), ("l40s", 48, 864), ("v100", 32, 900),
        ("a100-40", 40, 1555), ("a100-80", 80, 2039), ("h100", 80, 3350), ("h200", 141, 4800),
        ("b200", 180, 8000), ("mi300x", 192, 5300),
        ("rtx3060", 12, 360), ("rtx3090", 24, 936), ("rtx4060", 8, 272), ("rtx4070", 12, 504), ("rtx4080", 16, 717),
        ("rtx4090", 24, 1008), ("rtx5070", 12, 672), ("rtx5080", 16, 960), ("rtx5090", 32, 1792),
        ("rtx6000ada", 48, 960),
    )
}  # fmt: skip
_ALIASES = {"a100": "a100-80", "3060": "rtx3060", "3090": "rtx3090", "4090": "rtx4090", "5090": "rtx5090"}


def parse_gpu(text: str) -> tuple[Gpu, int]:
    """ "h100" or "rtx4090:2": the GPU and how many."""
    name, _, number = text.partition(":")
    key = re.sub(r"[\s_]|geforce|nvidia", "", name.lower())
    key = _ALIASES.get(key, key.replace("rtx-", "rtx"))
    if key not in GPUS:
        near = difflib.get_close_matches(key, GPUS, 3, 0.4) or sorted(GPUS)
        raise UsageError(f"--gpu {text}: unknown GPU '{name}'", f"did you mean {', '.join(near)}?")
    if number and (not number.isdigit() or not 1 <= int(number) <= 1024):
        raise UsageError(f"--gpu {text}: '{number}' is not a number of GPUs", "write NAME or NAME:N")
    return GPUS[key], int(number or 1)
