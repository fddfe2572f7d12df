"""How fast a plan will be: bytes over the bandwidth of the place they come from, both sides at once; as a band."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from moecli.formats.words import formats_of
from moecli.kernels import built
from moecli.model.spec import Layer, Mixture, ModelSpec, alike
from moecli.planning.choice import DEVICE_KERNELS, unpacked_on_device
from moecli.planning.memory import dense_read_bytes, expert_bytes, read_bytes_per_token
from moecli.planning.placement import Plan
from moecli.planning.rates import Pace, Rates, split

Evidence = Literal["measured", "given", "typical"]
Source = Literal["measured", "given", "maker", "typical"]  # of one figure; "maker": printed by that of a named card
Place = Literal["ram", "disk", "device", "link"]

# An unknown machine: two memory channels, an NVMe disk, a mid-range GPU in a slot of PCIe 4.0. Bytes per second.
TYPICAL_RAM = 30e9
TYPICAL_DISK = 1.5e9
TYPICAL_DEVICE = 400e9
TYPICAL_LINK = 22e9
TYPICAL_OPERATIONS = 50e12  # with 16-bit matrices on the GPU, per second
# Best case, worst case.
_REACHED = (1.15, 0.4)  # share of a bandwidth or of a product's speed; measuring itself falls short of the whole
_DISK_REACHED = (1.5, 0.4)  # share of what a short burst of reads measures, on disks that others use too
_DEVICE_REACHED = (0.95, 0.35)  # share of a card's bandwidth
_LINK_REACHED = (1.05, 0.3)  # share of a large copy's, by records; at worst each is an exchange, there and back
_OPERATIONS_REACHED = (0.6, 0.05)  # share of what a card's maker prints
_LOCALITY = (0.3, 1.0)  # share of a uniform router's misses that remain: real routing repeats itself
_HITS = (0.5, 1.0)  # a uniform router finds the share on the device; real routing its square root: docs/performance.md
_NATIVE_STEP_S = (20e-6, 2e-3)  # fixed cost of one layer of one pass in native code; the worst is a busy machine
_STEP_S = (0.2e-3, 2e-3)  # the same by torch
_DEVICE_STEP_S = (0.2e-3, 5e-3)  # the same by torch on a card, which waits for each operator to be started
_KERNEL_STEP_S = (30e-6, 1e-3)  # the same by moecli's own kernels there
_BESIDE_S = (40e-6, 0.5e-3)  # of a layer some of whose experts are elsewhere: hidden states go there and back
_SCORE_BYTES = (0, 80)  # moved for one attention score: none if fused; as torch does it, masked half and all
_CALL_S = (10e-6, 0.3e-3)  # fixed cost of one expert of a prompt
_DEVICE_CALL_S = (10e-6, 0.5e-3)  # the same beside a card


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
_UNPACKING_THERE = (40e9, 1e9)  # the same of what torch unpacks on a card: 2 to 8 GB/s of small matrices on an H100


@dataclass(frozen=True, slots=True)
class Sources:
    """Where each bandwidth comes from."""

    ram: Source = "typical"
    disk: Source = "typical"
    device: Source = "typical"
    link: Source = "typical"


@dataclass(frozen=True, slots=True)
class Bandwidths:
    """Bandwidths in bytes per second, and products where they are known: of the CPU, and of a device.

    `link`: from RAM to the device. `operations`: of the device, with 16-bit matrices, per second. `kernels`: whether
    moecli's own run there.
    """

    ram: float = TYPICAL_RAM
    disk: float = TYPICAL_DISK
    device: float = TYPICAL_DEVICE
    link: float = TYPICAL_LINK
    operations: float = TYPICAL_OPERATIONS
    kernels: bool = True
    linear: LinearThroughput | None = None
    sources: Sources = field(default_factory=Sources)

    def multiplying(self, dtype: str, case: int) -> LinearThroughput:
        """What was measured, else what is typical; of many small steps a short measurement says little."""
        typical = _TYPICAL_LINEAR[case]
        if (experts := formats_of(dtype).experts) in _UNPACKING and not built.expected():
            return replace(typical, bytes_per_s=_UNPACKING[experts][case])
        return self.linear or typical

    def evidence(self, places: Iterable[Place]) -> Evidence:
        """One word for the figures of some places: measured if each was, given if somebody described one of them."""
        found = {getattr(self.sources, place) for place in places}
        if found & {"given", "maker"}:
            return "given"
        return "typical" if "typical" in found else "measured"


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
    spec: ModelSpec,
    plan: Plan,
    bandwidths: Bandwidths,
    prompt: int = 512,
    held: float | None = None,
    rates: Rates | None = None,
) -> Throughput:
    """The band for decoding one token at a time behind `held` others, and for a prompt of `prompt` tokens.

    Without `held` the context is half full. `rates`: of the experts beside a device, where they were measured.
    """
    best, worst = (_seconds_per_token(spec, plan, bandwidths, held, case, rates) for case in (0, 1))
    quick, slow = (_first_token(spec, plan, bandwidths, prompt, case, rates) for case in (0, 1))
    return Throughput(1 / worst, 1 / best, quick, slow, bandwidths.evidence(places(plan)))


def places(plan: Plan) -> tuple[Place, ...]:
    """The bandwidths that a plan's speed depends on."""
    beside = plan.ram.experts + plan.disk.experts > 0
    used: tuple[tuple[Place, bool], ...] = (
        ("device", plan.device.dense > 0),
        ("link", plan.device.dense > 0 and beside),
        ("ram", plan.device.dense == 0 or beside),
        ("disk", plan.disk.experts > 0),
    )
    return tuple(place for place, counts in used if counts)


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
        "disk": experts * plan.disk.experts / count * _read_share(plan),
    }


def _read_share(plan: Plan) -> float:
    """Bytes that are read from disk for each that is computed with: of an unpacked checkpoint seldom 1."""
    return plan.memory.read_bytes / max(1, plan.memory.bytes_per_expert)


def expert_rates(
    spec: ModelSpec, mixture: Mixture, dtype: str, bandwidths: Bandwidths, case: int, measured: Rates | None = None
) -> Rates:
    """Of a mixture's experts: what was `measured`, else what follows from bandwidths; at best (case 0), at worst (1).

    One token takes the time of an expert's bytes, each further one that of its operations.
    """
    if measured is not None:
        share = _REACHED[case]
        paces = (replace(pace, bytes_per_s=pace.bytes_per_s * share) for pace in (measured.host, measured.device))
        return Rates(measured.copy * share, *paces)
    size, operations = expert_bytes(spec, mixture, dtype), expert_bytes(spec, mixture, "bf16")  # two for 2 bytes
    linear = bandwidths.multiplying(dtype, case)
    here = min(bandwidths.ram, linear.bytes_per_s) * _REACHED[case]
    there = _device_bytes_per_s(dtype, bandwidths, case)
    return Rates(
        bandwidths.link * _LINK_REACHED[case],
        Pace(here, operations / (linear.operations_per_s * _REACHED[case]) * here / size),
        Pace(there, operations / (bandwidths.operations * _OPERATIONS_REACHED[case]) * there / size),
    )


def _device_bytes_per_s(dtype: str, bandwidths: Bandwidths, case: int) -> float:
    reached = bandwidths.device * _DEVICE_REACHED[case]
    return min(reached, _UNPACKING_THERE[case]) if unpacked_on_device(dtype, bandwidths.kernels) else reached


def _cache_bytes(plan: Plan, held: float | None) -> float:
    memory = plan.memory
    return memory.kv.bytes / max(1, memory.batch) * (0.5 if held is None else held / memory.context)


def _seconds_per_token(
    spec: ModelSpec, plan: Plan, bandwidths: Bandwidths, held: float | None, case: int, rates: Rates | None
) -> float:
    read = bytes_per_token(spec, plan, held)
    reading = read["disk"] * _LOCALITY[case] / (bandwidths.disk * _DISK_REACHED[case])
    fixed = _step(plan, bandwidths, case) * len(spec.layers)
    if plan.device.dense:
        core = dense_read_bytes(spec, plan.memory.dtype) + _cache_bytes(plan, held)
        computing = core / _device_bytes_per_s(plan.memory.dtype, bandwidths, case)
        for mixture, layers in _mixtures(spec.layers):
            computing += layers * _token_beside_device(spec, mixture, plan, bandwidths, case, rates)
        return _together(computing, reading, case) + fixed
    by_host = read["ram"] + read["disk"] / (_read_share(plan) or 1)
    weights = by_host - _cache_bytes(plan, held)
    host = max(by_host / bandwidths.ram, weights / bandwidths.multiplying(plan.memory.dtype, case).bytes_per_s)
    return _together(host / _REACHED[case], reading, case) + fixed


def _token_beside_device(
    spec: ModelSpec, mixture: Mixture, plan: Plan, bandwidths: Bandwidths, case: int, rates: Rates | None
) -> float:
    """Seconds of one layer's experts: the device computes its own while the CPU computes and copies the others.

    How many of a token's experts are elsewhere is a matter of chance, and the slower side is waited for.
    """
    top_k, size = mixture.router.top_k, expert_bytes(spec, mixture, plan.memory.dtype)
    pace = expert_rates(spec, mixture, plan.memory.dtype, bandwidths, case, rates)
    share = (plan.device.experts / max(1, plan.memory.expert_count)) ** _HITS[case]  # of a token's experts
    seconds = 0.0
    for elsewhere in range(top_k + 1):
        chance = math.comb(top_k, elsewhere) * (1 - share) ** elsewhere * share ** (top_k - elsewhere)
        if chance:
            own = (top_k - elsewhere) * pace.device.seconds(1, size)
            seconds += chance * _beside(elsewhere, 1, size, own, pace, bandwidths.ram * _REACHED[case])
    return seconds


def _beside(experts: float, tokens: float, size: int, own: float, rates: Rates, ram: float) -> float:
    """Seconds until device and CPU have computed `experts` that lie in RAM, beside the device's `own` seconds.

    What is copied and what the CPU reads share the bandwidth of `ram`.
    """
    count = round(experts) if experts >= 1 else 1 if experts > 0 else 0
    if count == 0:
        return own
    _, end = split(dict.fromkeys(range(count), tokens), size, rates, own * count / experts)
    return max(end * experts / count, experts * size / ram)


def _first_token(
    spec: ModelSpec, plan: Plan, bandwidths: Bandwidths, prompt: int, case: int, rates: Rates | None
) -> float:
    """Each block reads the experts that its tokens choose once; the arithmetic grows with the length."""
    memory, linear = plan.memory, bandwidths.multiplying(plan.memory.dtype, case)
    read = 1.0  # share of the experts that the prompt passes
    if spec.encoder:
        read = _experts_of(spec.encoder) / max(1, memory.expert_count)
        spec = replace(spec, layers=spec.encoder, encoder=())
    chunks = math.ceil(prompt / memory.chunk)
    experts = read * math.ceil(prompt / memory.block) * _chosen(spec, min(prompt, memory.block))
    reading = experts * plan.disk.expert_bytes / (bandwidths.disk * _DISK_REACHED[case])
    call = (_DEVICE_CALL_S if plan.device.dense else _CALL_S)[case]
    fixed = chunks * len(spec.layers) * _step(plan, bandwidths, case) + experts * memory.expert_count * call
    if plan.device.dense:
        dense = chunks * dense_read_bytes(spec, memory.dtype) / _device_bytes_per_s(memory.dtype, bandwidths, case)
        work = _dense_operations(spec, prompt) / (bandwidths.operations * _OPERATIONS_REACHED[case])
        computing = dense + work
        for mixture, layers in _mixtures(spec.layers):
            computing += layers * _prompt_beside_device(spec, mixture, plan, bandwidths, prompt, case, rates)
        return _together(computing, reading, case) + fixed
    weights = experts * (
        plan.ram.expert_bytes + plan.disk.expert_bytes / (_read_share(plan) or 1)
    ) + chunks * dense_read_bytes(spec, memory.dtype)
    moved = _SCORE_BYTES[case] * sum(pairs for _, pairs in _pairs(spec, prompt))
    host = max(weights / bandwidths.ram, weights / linear.bytes_per_s) + moved / bandwidths.ram
    host += _operations(spec, prompt) / linear.operations_per_s
    return _together(host / _REACHED[case], reading, case) + fixed


def _prompt_beside_device(
    spec: ModelSpec, mixture: Mixture, plan: Plan, bandwidths: Bandwidths, prompt: int, case: int, rates: Rates | None
) -> float:
    """Seconds of one layer's experts for a prompt: those with many tokens are copied, whole layers of a long one."""
    router, size = mixture.router, expert_bytes(spec, mixture, plan.memory.dtype)
    pace = expert_rates(spec, mixture, plan.memory.dtype, bandwidths, case, rates)
    block = min(prompt, plan.memory.block)
    chosen = router.experts * _selected(router.experts, router.top_k, block)
    tokens = block * router.top_k / chosen
    there = chosen * plan.device.experts / max(1, plan.memory.expert_count)
    own = there * pace.device.seconds(tokens, size)
    blocks = math.ceil(prompt / plan.memory.block)
    return blocks * _beside(chosen - there, tokens, size, own, pace, bandwidths.ram * _REACHED[case])


def _together(computing: float, reading: float, case: int) -> float:
    """Seconds of both: at best at the same time, at worst one after the other."""
    return computing + reading if case else max(computing, reading)


def _step(plan: Plan, bandwidths: Bandwidths, case: int) -> float:
    """Fixed cost of one layer of one pass."""
    if not plan.device.dense:
        return (_NATIVE_STEP_S if built.expected() else _STEP_S)[case]
    own = formats_of(plan.memory.dtype).experts in DEVICE_KERNELS and bandwidths.kernels
    beside = _BESIDE_S[case] if plan.ram.experts or plan.disk.experts else 0
    return (_KERNEL_STEP_S if own else _DEVICE_STEP_S)[case] + beside


def _mixtures(layers: Sequence[Layer]) -> Iterator[tuple[Mixture, int]]:
    """Those of a stack, and in how many layers each is."""
    return ((layer.ffn, times) for layer, times in alike(layers) if isinstance(layer.ffn, Mixture))


def _chosen(spec: ModelSpec, tokens: int) -> float:
    """The share of all experts that so many tokens choose, if every expert is equally likely."""
    routers = [(mixture.router, n) for mixture, n in _mixtures(spec.layers)]
    chosen = sum(n * router.experts * _selected(router.experts, router.top_k, tokens) for router, n in routers)
    return chosen / max(1, sum(n * router.experts for router, n in routers))


def _selected(experts: int, top_k: int, tokens: int) -> float:
    """The same of one layer."""
    return 1 - (1 - top_k / experts) ** tokens


def _experts_of(layers: Sequence[Layer]) -> int:
    return sum(layer.ffn.router.experts for layer in layers if isinstance(layer.ffn, Mixture))


def _operations(spec: ModelSpec, prompt: int) -> float:
    """Two per active weight and token, but for the head, which sees the last token alone; and attention's own."""
    return prompt * _active_bytes(spec, read_bytes_per_token) + _attention_operations(spec, prompt)


def _dense_operations(spec: ModelSpec, prompt: int) -> float:
    """The same without the routed experts."""
    return prompt * _active_bytes(spec, dense_read_bytes) + _attention_operations(spec, prompt)


def _active_bytes(spec: ModelSpec, read: Callable[[ModelSpec, str], int]) -> int:
    """2 bytes a weight, as many as its operations."""
    return read(spec, "bf16") - 2 * spec.vocab_size * spec.hidden_size


def _attention_operations(spec: ModelSpec, prompt: int) -> float:
    return sum(4 * pairs * layer.attention.head_dim for layer, pairs in _pairs(spec, prompt))


def _pairs(spec: ModelSpec, prompt: int) -> Iterator[tuple[Layer, float]]:
    """Attention scores of all layers of a kind: every head, every token with all it sees."""
    for layer, times in alike(spec.layers):
        seen = min(prompt, layer.attention.window or prompt)
        yield layer, times * layer.attention.heads * prompt * seen / 2
