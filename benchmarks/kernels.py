"""The native kernels alone, on every instruction set of this processor: python -m benchmarks.kernels [FORMAT...]

Decode: the experts of one layer for one token, from cold memory, beside the read bandwidth measured next to it.
Prefill: operations per second of one expert on many tokens. Packing: weights per second, of formats that are kept from
their published blocks. Markdown tables.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor

from benchmarks.machine_name import machine_name
from moecli import formats
from moecli.formats import GROUPED, SEARCHED, bytes_for
from moecli.formats.published import Blocks
from moecli.kernels import library, native
from moecli.kernels.bandwidth import read_bandwidth
from moecli.kernels.linear import pack
from moecli.model.spec import Activation
from moecli.planning import machine

_SECONDS, _RUNS = 0.5, 3  # what every measurement takes at least
_COLD = 256 * 2**20  # bytes of experts that are gone through before one comes again: far beyond any cache
_TOKENS = (8, 32, 128, 512)
_PACKED = (4096, 2048)


@dataclass(frozen=True, slots=True)
class Layer:
    """What the experts of one layer are like."""

    name: str
    hidden_size: int
    intermediate_size: int
    top_k: int

    def expert_bytes(self, dtype: str) -> int:
        up, down = (self.intermediate_size, self.hidden_size), (self.hidden_size, self.intermediate_size)
        return 2 * bytes_for(dtype, up) + bytes_for(dtype, down)


_LAYERS = (Layer("OLMoE", 2048, 1024, 8), Layer("Mixtral", 4096, 14336, 2))


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds that one call took."""

    best: float
    median: float


def measure(call: Callable[[], object]) -> Times:
    """The first call does not count, unless it alone takes longer than all should."""
    times = [_seconds(call)]
    if times[0] > _SECONDS:
        return Times(times[0], times[0])
    times.clear()
    while len(times) < _RUNS or sum(times) < _SECONDS:
        times.append(_seconds(call))
    return Times(min(times), statistics.median(times))


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def experts(dtype: str, layer: Layer, count: int) -> list[native.Expert]:
    """Equal ones, each with its own memory."""
    up = pack(dtype, torch.randn(layer.intermediate_size, layer.hidden_size))
    down = pack(dtype, torch.randn(layer.hidden_size, layer.intermediate_size))
    return [(up.clone(), up.clone(), down.clone()) for _ in range(count)]


def decode(dtype: str, layer: Layer) -> Iterator[str]:
    """Milliseconds, GB/s at best and in the median, and the best as a share of the bandwidth."""
    size = layer.top_k * layer.expert_bytes(dtype)
    groups = [experts(dtype, layer, layer.top_k) for _ in range(max(2, -(-_COLD // size)))]
    turns = cycle(groups)
    x = torch.randn(1, layer.hidden_size, dtype=torch.bfloat16)
    for isa in _each_isa():
        bandwidth = read_bandwidth()
        times = measure(lambda: native.feed_forward(dtype, x, next(turns), layer.intermediate_size, Activation.SILU))
        rate = size / times.best
        yield (
            f"| {dtype}, {layer.name}, {layer.top_k} experts | {isa} | {times.median * 1e3:.2f} "
            f"| {size / times.median / 1e9:.1f} | {rate / 1e9:.1f} | {bandwidth / 1e9:.1f} | {rate / bandwidth:.0%} |"
        )


def prefill(dtype: str, layer: Layer) -> Iterator[str]:
    """Billions of operations per second, in the median, for several numbers of tokens."""
    expert = experts(dtype, layer, 1)
    for isa in _each_isa():
        rates = (_operations(dtype, layer, expert, tokens) for tokens in _TOKENS)
        yield f"| {dtype}, {layer.name} | {isa} | {' | '.join(f'{rate / 1e9:,.0f}' for rate in rates)} |"


def _operations(dtype: str, layer: Layer, expert: list[native.Expert], tokens: int) -> float:
    x = torch.randn(tokens, layer.hidden_size, dtype=torch.bfloat16)
    times = measure(lambda: native.feed_forward(dtype, x, expert, layer.intermediate_size, Activation.SILU))
    return 6 * layer.hidden_size * layer.intermediate_size * tokens / times.median


def packing(dtype: str) -> Iterator[str]:
    """Millions of weights per second, in the median, from two precisions."""
    weights = torch.randn(_PACKED)
    for isa in _each_isa():
        rates = [_weights(dtype, weights.to(stored)) for stored in (torch.bfloat16, torch.float32)]
        yield f"| {dtype} | {isa} | {' | '.join(f'{rate / 1e6:,.0f}' for rate in rates)} |"


def repacking(dtype: str) -> Iterator[str]:
    """Millions of weights per second, in the median: of published blocks, and by torch of what they stand for."""
    rows, columns = _PACKED
    indices = torch.randint(256, (rows, columns // 32, 16), dtype=torch.uint8)
    indices[..., 0] = 0x77 if dtype == "mxfp4" else 0  # a largest code in each group, as quantisers leave it
    scales = torch.full((rows, columns // 32, 1), 120, dtype=torch.uint8)
    if dtype != "mxfp4":
        scales = torch.rand(rows, columns // 32, 1).half().view(torch.uint8)
    blocks = Blocks(dtype, indices, scales, paired=dtype == "mxfp4")
    packed = torch.empty(bytes_for(dtype, _PACKED), dtype=torch.uint8)
    native.repack(blocks, packed)
    numbers = formats.unpack(dtype, packed, _PACKED, torch.float32)
    by_torch = numbers.numel() / measure(lambda: formats.pack(dtype, numbers)).median
    for isa in _each_isa():
        rate = numbers.numel() / measure(lambda: native.repack(blocks, packed)).median
        yield f"| {dtype} | {isa} | {rate / 1e6:,.0f} | {by_torch / 1e6:,.1f} |"


def _weights(dtype: str, weights: Tensor) -> float:
    return weights.numel() / measure(lambda: native.pack(dtype, weights)).median


def _each_isa() -> Iterator[str]:
    """Name after name, each in use until the next; then the best again."""
    names = library.isas()
    for name in names:
        library.use_isa(name)
        yield name
    library.use_isa(names[0])


def _table(head: str, rows: Iterator[str]) -> None:
    print(f"\n| {head} |\n|{'---|' * (head.count('|') + 1)}", flush=True)
    for row in rows:
        print(row, flush=True)


def main() -> None:
    dtypes = sys.argv[1:] or list(native.FORMATS)
    kinds = [(dtype, layer) for dtype in dtypes for layer in _LAYERS]
    torch.set_num_threads(machine.compute_threads())
    print(f"{machine_name()}; {torch.get_num_threads()} threads; torch {torch.__version__}")
    head = "decode, one layer | isa | ms | GB/s | at best | read bandwidth | share at best"
    _table(head, (row for kind in kinds for row in decode(*kind)))
    tokens = " | ".join(f"{count} tokens" for count in _TOKENS)
    _table(f"prefill, GOP/s | isa | {tokens}", (row for kind in kinds for row in prefill(*kind)))
    _table(
        "packing, million weights/s | isa | from bf16 | from fp32",
        (row for each in dtypes if each in SEARCHED for row in packing(each)),
    )
    _table(
        "packing what is kept, million weights/s | isa | native, one core | torch",
        (row for each in dtypes if each in GROUPED for row in repacking(each)),
    )


if __name__ == "__main__":
    main()
