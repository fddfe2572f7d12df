"""How fast a plan will be: bytes per token over the bandwidth of the place they come from, as a band."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from moecli.kernels import built
from moecli.model.spec import Layer, Mixture, ModelSpec, alike
from moecli.planning.memory import dense_read_bytes, read_bytes_per_token
from moecli.planning.placement import Plan

Evidence = Literal["measured", "given", "typical"]

# An unknown machine: two memory channels, an NVMe disk, a mid-range GPU. Bytes per second.
TYPICAL_RAM = 30e9
TYPICAL_DISK = 1.5e9
TYPICAL_DEVICE = 400e9
# Best case, worst case.
_REACHED = (1.15, 0.4)  # share of a bandwidth or of a product's speed; measuring itself falls short of the whole
_DISK_REACHED = (1.5, 0.4)  # share of what a short burst of reads measures, on disks that others use too
_LOCALITY = (0.3, 1.0)  # share of a uniform router's misses that remain: real routing repeats itself
_NATIVE_STEP_S = (20e-6, 2e-3)  # fixed cost of one layer of one pass in native code; the worst is a busy machine
_STEP_S = (0.2e-3, 2e-3)  # the same by torch
_SCORE_BYTES = (0, 80)  # moved for one attention score: none if fused; as torch does it, masked half and all
_CALL_S = (10e-6, 0.3e-3)  # fixed cost of one expert of a prompt


@dataclass(frozen=True, slots=True)
class LinearThroughput:
    """How fast the CPU multiplies with weights in one format.

    A product takes the time of its bytes, which one token takes alone, and that of its operations, two per weight and
    token.
    """

    bytes_per_s: float
    operations_per_s: float


_TYPICAL_LINEAR = (LinearThroughput(100e9, 600e9), LinearThroughput(100e9, 100e9))
# Without native kernels torch unpacks these before each product, in many small steps: bytes per second on two cores.
_UNPACKING = {"nf4": (2e9, 0.3e9), "int8": (5e9, 0.6e9)}


@dataclass(frozen=True, slots=True)
class Bandwidths:
    """Bandwidths in bytes per second, the CPU's products where they are known, and where the figures come from."""

    ram: float = TYPICAL_RAM
    disk: float = TYPICAL_DISK
    device: float = TYPICAL_DEVICE
    evidence: Evidence = "typical"
    linear: LinearThroughput | None = None

    def multiplying(self, dtype: str, case: int) -> LinearThroughput:
        """What was measured, else what is typical; of many small steps a short measurement says little."""
        typical = _TYPICAL_LINEAR[case]
        if dtype in _UNPACKING and not built.expected():
            return replace(typical, bytes_per_s=_UNPACKING[dtype][case])
        return self.linear or typical


@dataclass(frozen=True, slots=True)
class Throughput:
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


def estimate_throughput(
    spec: ModelSpec, plan: Plan, bandwidths: Bandwidths, prompt: int = 512, held: float | None = None
) -> Throughput:
    """The band for decoding one token at a time behind `held` others, and for a prompt of `prompt` tokens.

    Without `held` the context is half full.
    """
    best, worst = (_seconds_per_token(spec, plan, bandwidths, held, case) for case in (0, 1))
    quick, slow = (_first_token(spec, plan, bandwidths, prompt, case) for case in (0, 1))
    return Throughput(1 / worst, 1 / best, quick, slow, bandwidths.evidence)


def bytes_per_token(spec: ModelSpec, plan: Plan, held: float | None = None) -> dict[str, float]:
    """What one token reads from each place, if every expert is equally likely."""
    memory = plan.memory
    dense = dense_read_bytes(spec, memory.dtype)
    experts = read_bytes_per_token(spec, memory.dtype) - dense
    count = max(1, memory.expert_count)
    core = dense + _cache_bytes(plan, held)
    on_device = plan.device.dense > 0
    return {
        "device": (core if on_device else 0) + experts * plan.device.experts / count,
        "ram": (0 if on_device else core) + experts * plan.ram.experts / count,
        "disk": experts * plan.disk.experts / count,
    }


def _cache_bytes(plan: Plan, held: float | None) -> float:
    memory = plan.memory
    return memory.kv.bytes / max(1, memory.batch) * (0.5 if held is None else held / memory.context)


def _seconds_per_token(spec: ModelSpec, plan: Plan, bandwidths: Bandwidths, held: float | None, case: int) -> float:
    read = bytes_per_token(spec, plan, held)
    by_host = read["ram"] + read["disk"]
    weights = by_host if plan.device.dense else by_host - _cache_bytes(plan, held)
    host = max(by_host / bandwidths.ram, weights / bandwidths.multiplying(plan.memory.dtype, case).bytes_per_s)
    reading = read["disk"] * _LOCALITY[case] / bandwidths.disk
    return _together(read["device"] / bandwidths.device + host, reading, case) + _step(plan, case) * len(spec.layers)


def _first_token(spec: ModelSpec, plan: Plan, bandwidths: Bandwidths, prompt: int, case: int) -> float:
    """Each block reads the experts that its tokens choose once; the arithmetic grows with the length."""
    memory, linear = plan.memory, bandwidths.multiplying(plan.memory.dtype, case)
    read = 1.0  # share of the experts that the prompt passes
    if spec.encoder:
        read = _experts_of(spec.encoder) / max(1, memory.expert_count)
        spec = replace(spec, layers=spec.encoder, encoder=())
    chunks = math.ceil(prompt / memory.chunk)
    experts = read * math.ceil(prompt / memory.block) * _chosen(spec, min(prompt, memory.block))
    weights = experts * (plan.ram.expert_bytes + plan.disk.expert_bytes)
    work = moved = 0.0
    if not plan.device.dense:
        weights += chunks * dense_read_bytes(spec, memory.dtype)
        work = _operations(spec, prompt)
        moved = _SCORE_BYTES[case] * sum(pairs for _, pairs in _pairs(spec, prompt))
    host = max(weights / bandwidths.ram, weights / linear.bytes_per_s) + moved / bandwidths.ram
    host += work / linear.operations_per_s
    fixed = chunks * len(spec.layers) * _step(plan, case) + experts * memory.expert_count * _CALL_S[case]
    return _together(host, experts * plan.disk.expert_bytes / bandwidths.disk, case) + fixed


def _together(computing: float, reading: float, case: int) -> float:
    """Seconds of both: at best at the same time, at worst one after the other."""
    computing, reading = computing / _REACHED[case], reading / _DISK_REACHED[case]
    return computing + reading if case else max(computing, reading)


def _step(plan: Plan, case: int) -> float:
    return (_NATIVE_STEP_S if built.expected() and not plan.device.dense else _STEP_S)[case]


def _chosen(spec: ModelSpec, tokens: int) -> float:
    """The share of all experts that so many tokens choose, if every expert is equally likely."""
    routers = [(layer.ffn.router, n) for layer, n in alike(spec.layers) if isinstance(layer.ffn, Mixture)]
    chosen = sum(n * router.experts * (1 - (1 - router.top_k / router.experts) ** tokens) for router, n in routers)
    return chosen / max(1, sum(n * router.experts for router, n in routers))


def _experts_of(layers: Sequence[Layer]) -> int:
    return sum(layer.ffn.router.experts for layer in layers if isinstance(layer.ffn, Mixture))


def _operations(spec: ModelSpec, prompt: int) -> float:
    """Two per active weight and token, but for the head, which sees the last token alone; and attention's own."""
    per_token = read_bytes_per_token(spec, "bf16") - 2 * spec.vocab_size * spec.hidden_size  # 2 bytes a weight
    return prompt * per_token + sum(4 * pairs * layer.attention.head_dim for layer, pairs in _pairs(spec, prompt))


def _pairs(spec: ModelSpec, prompt: int) -> Iterator[tuple[Layer, float]]:
    """Attention scores of all layers of a kind: every head, every token with all it sees."""
    for layer, times in alike(spec.layers):
        seen = min(prompt, layer.attention.window or prompt)
        yield layer, times * layer.attention.heads * prompt * seen / 2
