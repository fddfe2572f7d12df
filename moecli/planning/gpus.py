"""Common GPUs: memory, bandwidths and arithmetic, as their makers print them."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from moecli.errors import UsageError

_LANE = 1e9 / 8 * 128 / 130  # bytes per second of one PCIe lane for each GT/s: 130 bits carry 128
_TRANSFERS = {3: 8, 4: 16, 5: 32}  # GT/s by generation
_PRACTICAL = 0.85  # of it, what a copy of pinned memory reaches: 54.8 of 63 GB/s were measured on an H100
_LEAST_CAPABILITY = (7, 5)  # of moecli's own kernels


@dataclass(frozen=True, slots=True)
class Gpu:
    """One model. `memory` in bytes, `bandwidth` in bytes per second, `operations`: with 16-bit matrices, per second.

    It sits in a slot of `lanes` lanes of PCIe generation `pcie`. `capability`: CUDA's; None for other makers.
    """

    name: str
    memory: int
    bandwidth: float
    pcie: int
    lanes: int
    operations: float
    capability: tuple[int, int] | None

    @property
    def link(self) -> float:
        """Bytes per second, each way, that a copy reaches in a slot which is as good as the card."""
        return _PRACTICAL * self.lanes * _TRANSFERS[self.pcie] * _LANE

    @property
    def has_kernels(self) -> bool:
        """Whether moecli's own kernels run there."""
        return self.capability is not None and self.capability >= _LEAST_CAPABILITY


GPUS = {
    name: Gpu(name, gib * 2**30, gb_per_s * 1e9, pcie, lanes, tera * 1e12, capability)
    for name, gib, gb_per_s, pcie, lanes, tera, capability in (
        ("t4", 16, 320, 3, 16, 65, (7, 5)), ("l4", 24, 300, 4, 16, 121, (8, 9)), ("a10", 24, 600, 4, 16, 125, (8, 6)),
        ("l40s", 48, 864, 4, 16, 362, (8, 9)), ("v100", 32, 900, 3, 16, 125, (7, 0)),
        ("a100-40", 40, 1555, 4, 16, 312, (8, 0)), ("a100-80", 80, 2039, 4, 16, 312, (8, 0)),
        ("h100", 80, 3350, 5, 16, 989, (9, 0)), ("h200", 141, 4800, 5, 16, 989, (9, 0)),
        ("b200", 180, 8000, 5, 16, 2250, (10, 0)), ("mi300x", 192, 5300, 5, 16, 1307, None),
        ("rtx3060", 12, 360, 4, 16, 25, (8, 6)), ("rtx3090", 24, 936, 4, 16, 71, (8, 6)),
        ("rtx4060", 8, 272, 4, 8, 30, (8, 9)), ("rtx4070", 12, 504, 4, 16, 58, (8, 9)),
        ("rtx4080", 16, 717, 4, 16, 97, (8, 9)), ("rtx4090", 24, 1008, 4, 16, 165, (8, 9)),
        ("rtx5070", 12, 672, 5, 16, 62, (12, 0)), ("rtx5080", 16, 960, 5, 16, 113, (12, 0)),
        ("rtx5090", 32, 1792, 5, 16, 210, (12, 0)), ("rtx6000ada", 48, 960, 4, 16, 364, (8, 9)),
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
