"""A GPU as moecli uses it: python -m benchmarks.gpu FOLDER [--threads 1,2,4] [--part NAME ...]

Its copies and its link to RAM, the products of every format against the CPU's, decoding with all, half and few of the
experts on it, and the CPU alone. Random weights of OLMoE's shape with 4 layers, written to FOLDER. Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine_name import machine_name
from benchmarks.models import Model
from moecli import formats
from moecli.experts.arena import Arena
from moecli.formats import bytes_for
from moecli.kernels.choice import chosen
from moecli.kernels.linear import as_matrix, linear, pack
from moecli.planning.memory import estimate_memory, read_bytes_per_token
from moecli.planning.placement import least_device, place

SHAPE = "olmoe-4-layers"
SIZES = (1.0, 3.2, 12.0, 30.0, 90.0)  # MiB of a record: of small experts in q4 up to Mixtral's in q4
MATRIX = (1024, 2048)  # of an expert of OLMoE
TOKENS = (1, 16, 512)
FORMATS = ("bf16", "q8", "int8", "q4", "nf4")
PROMPT, ANSWER = 512, 64
_COLD = 256 * 2**20  # bytes gone through before one comes again: beyond any cache
_LONGEST = 120  # seconds of one process
_RUNS, _SECONDS = 5, 0.2  # of one figure, at least

Row = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Card:
    """The device, and how fast it copies its own memory: bytes read and written per second."""

    device: torch.device
    bandwidth: float

    def seconds(self, call: Callable[[], object]) -> float:
        return seconds(call, self.device)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """The median of a few calls, each waited for; the first does not count."""
    times: list[float] = []
    while len(times) <= _RUNS or sum(times) < _SECONDS:
        began = time.perf_counter()
        call()
        wait(device)
        times.append(time.perf_counter() - began)
    return median(times[1:])


def queued_seconds(call: Callable[[], object], device: torch.device, calls: int = 20) -> float:
    """Of one call among many that are started without waiting, as a forward pass starts them."""

    def many() -> None:
        for _ in range(calls):
            call()

    return seconds(many, device) / calls


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def find_card(device: torch.device) -> Card:
    source = torch.zeros(2**28, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return Card(device, 2 * source.nbytes / seconds(lambda: target.copy_(source), device))


def links(card: Card) -> Iterator[Row]:
    """Bytes per second to and from the card by size of a record: pinned as moecli does it, as torch does it, not."""
    for size in (int(mib * 2**20) for mib in SIZES):
        there = torch.empty(size, dtype=torch.uint8, device=card.device)
        arenas = Arena(1, size, copied_to=card.device), Arena(1, size)
        kinds = [arenas[0].slot(0), torch.empty(size, dtype=torch.uint8, pin_memory=card.device.type == "cuda")]
        kinds.append(arenas[1].slot(0))
        rates = []
        for here in kinds:
            here.zero_()
            up = card.seconds(lambda here=here, there=there: there.copy_(here, non_blocking=True))  # type: ignore[misc]
            down = card.seconds(lambda here=here, there=there: here.copy_(there, non_blocking=True))  # type: ignore[misc]
            rates += [f"{size / up / 1e9:.1f}", f"{size / down / 1e9:.1f}"]
        yield f"{size / 2**20:g} MiB", *rates


def products(card: Card) -> Iterator[Row]:
    """Each format's product on the card: its error against float64 on the CPU, and how fast it is from cold memory."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(MATRIX, generator=generator)
    for dtype in FORMATS:
        packed = weights.to(torch.bfloat16).view(torch.uint8).view(-1) if dtype == "bf16" else pack(dtype, weights)
        exact = formats.unpack(dtype, packed, MATRIX, torch.float32).double()
        copies = [as_matrix(dtype, MATRIX, packed.to(card.device, copy=True)) for _ in range(-(-_COLD // len(packed)))]
        for tokens in TOKENS:
            yield dtype, kernel(dtype, card.device), tokens, *product(card, dtype, exact, copies, tokens, generator)


def product(
    card: Card, dtype: str, exact: Tensor, copies: list[Any], tokens: int, generator: torch.Generator
) -> Iterator[str]:
    """Error, microseconds, GB/s of packed weights, and that as a share of what a copy reads and writes."""
    x = torch.randn(tokens, MATRIX[1], generator=generator).to(torch.bfloat16)
    there, turns = x.to(card.device), cycle(copies)
    expected = x.double() @ exact.T
    found = linear(there, copies[0]).cpu().double()
    yield f"{float((found - expected).norm() / expected.norm()):.1e}"
    took = queued_seconds(lambda: linear(there, next(turns)), card.device)
    rate = bytes_for(dtype, MATRIX) / took
    yield from (f"{took * 1e6:.0f}", f"{rate / 1e9:.1f}", f"{rate / card.bandwidth:.1%}")


def kernel(dtype: str, device: torch.device) -> str:
    return "torch" if dtype in formats.PLAIN else chosen(dtype, device.type)


def decoding(card: Card, folder: Path) -> Iterator[Row]:
    """One process each: tokens per second with all, half and few experts on the card; the rest in RAM or on disk."""
    model = Model(SHAPE, folder)
    for dtype, path in (("q4", model.store()), ("bf16", model.checkpoint())):
        need = estimate_memory(model.spec, dtype, PROMPT + ANSWER)
        least, count = least_device(need), need.expert_count
        budgets: dict[str, tuple[int, int | None]] = {
            "all": (count, None),
            "half": (count // 2, None),
            "few": (count // 8, None),
        }
        if dtype == "q4":
            some = place(need, 0, least).least_ram + count // 4 * need.slot_bytes
            budgets["few, 1/4 in RAM"] = count // 8, some
        for name, (experts, ram) in budgets.items():
            vram = least + experts * need.slot_bytes
            try:
                found = run_alone(path, card.device.type, vram, ram)
            except subprocess.SubprocessError as failure:
                yield dtype, name, failure
                continue
            rate = read_bytes_per_token(model.spec, dtype) * found["decode"]
            yield (
                dtype, name, f"{found['prefill']:.0f}", f"{found['decode']:.1f}", f"{rate / card.bandwidth:.2%}",
                f"{found['device_hits']:.0%}", f"{found['copied'] / 2**20:.1f}", f"{vram / 2**20:.0f}",
                f"{found['used'] / 2**20:.0f}", f"{found['tensors'] / 2**20:.0f}",
                f"{found['planned_rss'] / 2**20:.0f}", f"{found['rss'] / 2**20:.0f}", f"{found['load_s']:.1f}",
            )  # fmt: skip


def processors(folder: Path, counts: list[int]) -> Iterator[Row]:
    """The CPU alone by number of threads, one process each."""
    store = Model(SHAPE, folder).store()
    spec = Model(SHAPE, folder).spec
    for threads in counts:
        found = run_alone(store, "cpu", None, None, threads)
        rate = read_bytes_per_token(spec, "q4") * found["decode"]
        yield (
            threads, f"{found['prefill']:.1f}", f"{found['decode']:.1f}", f"{rate / 1e9:.1f}",
            f"{found['ram'] / 1e9:.1f}", f"{rate / found['ram']:.0%}",
        )  # fmt: skip


def run_alone(
    path: Path, device: str, vram: int | None, ram: int | None, threads: int | None = None
) -> dict[str, float]:
    """`measure` in a process of its own."""
    asked = {"path": str(path), "device": device, "vram": vram, "ram": ram, "threads": threads}
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)} if threads else dict(os.environ)
    command = [sys.executable, "-m", "benchmarks.gpu", "--alone", json.dumps(asked)]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=_LONGEST)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        done.check_returncode()
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(path: str, device: str, vram: int | None, ram: int | None, threads: int | None) -> dict[str, float]:
    """What `moecli bench` measures, and what the card holds at its end beyond what was held before."""
    from moecli.engine import bench
    from moecli.engine.loaded import LoadOptions, open_for_run
    from moecli.kernels.bandwidth import read_bandwidth
    from moecli.library.resolve import resolve
    from moecli.store.progress import silent

    gpu = device == "cuda"
    before = held() if gpu else 0
    options = LoadOptions(device=device, vram=vram if gpu else None, ram=ram, threads=threads)
    opened = open_for_run(resolve(path), options)
    work = bench.workload(opened, PROMPT, ANSWER, 1)
    expected = bench.expect(opened, work)
    loaded, load_s = bench.load(opened, expected, silent)
    if gpu:  # experts settle where they are used
        bench.measure(loaded, work, expected, load_s, lambda *progress: None)
    statistics = loaded.decoder.experts.statistics
    hits, copied = getattr(statistics, "device_hits", 0), getattr(statistics, "bytes_copied", 0)
    asked = statistics.hits + statistics.misses
    result = bench.measure(loaded, work, expected, load_s, lambda *progress: None)
    tokens = 2 * PROMPT + ANSWER  # the warm-up reads a prompt too
    return {
        "prefill": result.prefill,
        "decode": result.decode,
        "load_s": load_s,
        "ram": read_bandwidth(),
        "device_hits": (getattr(statistics, "device_hits", 0) - hits) / (statistics.hits + statistics.misses - asked),
        "copied": (getattr(statistics, "bytes_copied", 0) - copied) / tokens,
        "planned_rss": expected.plan.ram.total,
        "rss": result.peak_rss,
        "used": held() - before if gpu else 0,
        "tensors": torch.cuda.max_memory_allocated() if gpu else 0,
    }


def held() -> int:
    """Bytes of the card that are not free; before this process has a context when nvidia-smi is asked first."""
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return int(subprocess.run(asked, capture_output=True, encoding="utf-8", check=True).stdout) * 2**20


def table(head: str, rows: Iterator[Row]) -> None:
    print(f"\n| {head} |\n|{'---|' * (head.count('|') + 1)}", flush=True)
    for row in rows:
        print("|", " | ".join(map(str, row)), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", default="1,2,4,8,16", help="of the CPU alone")
    parser.add_argument("--part", nargs="*", choices=["links", "products", "decoding", "processors"], default=[])
    options = parser.parse_args()
    parts = options.part or ["links", "products", "decoding", "processors"]
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    card = find_card(device)
    print(f"{card_name(device)}; {machine_name()}; torch {torch.__version__}")
    print(f"a copy within the card reads and writes {card.bandwidth / 1e9:,.0f} GB/s", flush=True)
    if "links" in parts:
        table("GB/s, record | pinned, to | from | torch's pinned, to | from | pageable, to | from", links(card))
    if "products" in parts:
        table("product | by | tokens | error | µs | GB/s | share of copy", products(card))
    if "decoding" in parts:
        head = "decode | experts on card | prefill/s | decode/s | share of copy | hits on card | MiB copied/token"
        table(f"{head} | --vram MiB | held | tensors | RAM planned | RSS | load s", decoding(card, options.folder))
    if "processors" in parts:
        counts = [int(text) for text in options.threads.split(",")]
        table("q4, threads | prefill/s | decode/s | GB/s | read bandwidth | share", processors(options.folder, counts))


def card_name(device: torch.device) -> str:
    if device.type == "cpu":
        return "no GPU: the CPU in its place"
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0"]
    found = subprocess.run(asked, capture_output=True, encoding="utf-8", check=True).stdout.strip()
    return f"{found.replace(', ', ', driver ')}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        print(json.dumps(measure(**json.loads(sys.argv[2]))))
    else:
        main()
