"""How fast a plan will be: bytes per token over the bandwidth of the place they come from, as a band."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from moecli.plan import Plan, dense_read_bytes, read_bytes_per_token
from moecli.spec import ModelSpec

Evidence = Literal["measured", "given", "typical"]

# An unknown machine: two memory channels, an NVMe disk, a mid-range GPU. Bytes per second.
TYPICAL_RAM = 30e9
TYPICAL_DISK = 1.5e9
TYPICAL_DEVICE = 400e9
_STEP = (0.2e-3, 2e-3)  # fixed cost of one layer of one token, best and worst
_EFFICIENCY = (1.0, 0.4)  # share of a bandwidth that is reached
_LOCALITY = (0.5, 1.0)  # share of a uniform router's misses that remain: real routing repeats itself
_PREFILL_FLOPS = (200e9, 30e9)  # a few cores; each weight is one multiplication and one addition per token


@dataclass(frozen=True, slots=True)
class Links:
    """Bandwidths in bytes per second, and where the figures come from."""

    ram: float = TYPICAL_RAM
    disk: float = TYPICAL_DISK
    device: float = TYPICAL_DEVICE
    evidence: Evidence = "typical"


@dataclass(frozen=True, slots=True)
class Speed:
    """Decode in tokens per second and the wait for the first token in seconds, each worst and best."""

    low: float
    high: float
    first_token_low_s: float
    first_token_high_s: float
    evidence: Evidence

    @property
    def middle(self) -> float:
        """One figure for the band."""
        return math.sqrt(self.low * self.high)


def forecast(spec: ModelSpec, plan: Plan, links: Links, prompt_tokens: int = 512) -> Speed:
    """The band for decoding one token at a time, and for a prompt of `prompt_tokens`."""
    best, worst = (_seconds_per_token(spec, plan, links, case) for case in (0, 1))
    quick, slow = (_first_token(spec, plan, links, prompt_tokens, case) for case in (0, 1))
    return Speed(1 / worst, 1 / best, quick, slow, links.evidence)


def bytes_per_token(spec: ModelSpec, plan: Plan) -> dict[str, float]:
    """What one token reads from each place, if every expert is equally likely; the cache half full."""
    need = plan.needs
    dense = dense_read_bytes(spec, need.dtype)
    experts = read_bytes_per_token(spec, need.dtype) - dense
    count = max(1, need.expert_count)
    core = dense + need.kv.bytes / max(1, need.batch) / 2
    on_device = plan.device.dense > 0
    return {
        "device": (core if on_device else 0) + experts * plan.device.experts / count,
        "ram": (0 if on_device else core) + experts * plan.ram.experts / count,
        "disk": experts * plan.disk.experts / count,
    }


def _seconds_per_token(spec: ModelSpec, plan: Plan, links: Links, case: int) -> float:
    read = bytes_per_token(spec, plan)
    memory = read["device"] / links.device + read["ram"] / links.ram
    disk = read["disk"] * _LOCALITY[case] / links.disk
    return (memory + disk) / _EFFICIENCY[case] + _STEP[case] * len(spec.layers)


def _first_token(spec: ModelSpec, plan: Plan, links: Links, prompt: int, case: int) -> float:
    """Each expert is read once per prompt; the arithmetic grows with its length."""
    work = prompt * read_bytes_per_token(spec, "bf16")  # two operations per weight = bytes in a 16-bit format
    compute = 0.0 if plan.device.dense else work / _PREFILL_FLOPS[case]
    return plan.disk.expert_bytes / links.disk / _EFFICIENCY[case] + compute + _STEP[case] * len(spec.layers)
