"""A GPU as moecli uses it: python -m benchmarks.gpu FOLDER [--threads 1,2,4] [--part NAME ...]

Its copies and its link to RAM, the products of every format against the CPU's, the tokens of `tiny`, decoding with all,
half and few of the experts on it, and the CPU alone. Random weights of OLMoE's and Mixtral's shapes with 4 layers,
written to FOLDER. Markdown tables, a row as it is measured.
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
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from statistics import median

import torch

import moecli
from benchmarks.machine_name import machine_name
from benchmarks.models import Model
from moecli import formats
from moecli.experts.arena import Arena
from moecli.formats import bytes_for
from moecli.kernels.choice import chosen
from moecli.kernels.linear import as_matrix, linear, pack
from moecli.model.families import read_spec
from moecli.planning.memory import estimate_memory, read_bytes_per_token
from moecli.planning.placement import least_device, place

SHAPES = ("olmoe-4-layers", "mixtral-4-layers")
SIZES = (1.0, 3.2, 12.0, 30.0, 90.0)  # MiB of a record: of small experts in q4 up to Mixtral's in q4
MATRICES = ((1024, 2048), (14336, 4096), (4096, 14336))  # of an expert of OLMoE and of Mixtral
TOKENS = (1, 2, 4, 512)
FORMATS = ("bf16", "q8", "int8", "q4", "nf4", "q3")
PROMPT, ANSWER = 512, 64
ROWS = 256  # that are packed and checked
PARTS = ("links", "products", "tiny", "decoding", "processors")
BITSANDBYTES = ("nf4", "int8")
TINY = Path(moecli.__file__).parent / "tiny"
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


def played_seconds(call: Callable[[], object], device: torch.device, calls: int = 20) -> float:
    """Of one call among many in a CUDA graph, as a decode step plays them; started one by one without a card."""

    def many() -> None:
        for _ in range(calls):
            call()

    many()
    wait(device)
    if device.type != "cuda":
        return seconds(many, device) / calls
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        many()
    return seconds(graph.replay, device) / calls


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def find_card(device: torch.device) -> Card:
    source = torch.zeros(2**28, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    for _ in range(30):  # until its clocks are up
        target.copy_(source)
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
    for dtype in FORMATS:
        if dtype in BITSANDBYTES and find_spec("bitsandbytes") is None:
            continue
        for shape in MATRICES:
            for tokens in TOKENS:
                yield (
                    dtype,
                    kernel(dtype, card.device),
                    f"{shape[0]} x {shape[1]}",
                    tokens,
                    *product(card, dtype, shape, tokens),
                )


def product(card: Card, dtype: str, shape: tuple[int, int], tokens: int) -> Iterator[str]:
    """Error, microseconds, GB/s of packed weights, and that as a share of what a copy reads and writes."""
    generator = torch.Generator().manual_seed(0)
    some = torch.randn(ROWS, shape[1], generator=generator)  # repeated: packing takes its time
    packed = some.to(torch.bfloat16).view(torch.uint8).view(-1) if dtype == "bf16" else pack(dtype, some)
    x = torch.randn(tokens, shape[1], generator=generator).to(torch.bfloat16)
    there = x.to(card.device)
    exact = formats.unpack(dtype, packed, (ROWS, shape[1]), torch.float32).double()
    expected = x.double() @ exact.T
    found = linear(there, as_matrix(dtype, (ROWS, shape[1]), packed.to(card.device))).cpu().double()
    yield f"{float((found - expected).norm() / expected.norm()):.1e}"
    size = bytes_for(dtype, shape)
    whole = packed.repeat(-(-size // len(packed)))[:size].to(card.device)
    turns = cycle([as_matrix(dtype, shape, whole.clone()) for _ in range(max(2, -(-_COLD // size)))])
    try:
        took = played_seconds(lambda: linear(there, next(turns)), card.device)
    except RuntimeError:  # some libraries look at what they compute: no graph can hold them
        torch.cuda.synchronize()
        took = seconds(lambda: linear(there, next(turns)), card.device)
    yield from (f"{took * 1e6:.0f}", f"{size / took / 1e9:.0f}", f"{size / took / card.bandwidth:.0%}")


def kernel(dtype: str, device: torch.device) -> str:
    return "torch" if dtype in formats.PLAIN else chosen(dtype, device.type)


def tokens_of_tiny(card: Card) -> Iterator[Row]:
    """How many of 100 greedy tokens are the CPU's, one process each, with all experts on the card and with half."""
    for dtype in ("fp32", "bf16", "q8", "q4", "q3"):
        expected = run_tiny(dtype, "--device", "cpu")
        least = least_device(estimate_memory(read_spec(json.loads((TINY / "config.json").read_text())), dtype, 128))
        for name, options in (("all", ()), ("few", ("--vram", str(least + 2**20)))):
            found = run_tiny(dtype, "--device", card.device.type, *options)
            same = next((n for n, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
            yield dtype, name, "all" if same is None else f"the first {same} characters"


def run_tiny(dtype: str, *options: str) -> str:
    command = [sys.executable, "-m", "moecli", "run", "tiny", "The sea", "--temperature", "0", "-n", "100", "--json"]
    done = subprocess.run(
        [*command, "--dtype", dtype, "--ctx", "128", *options],
        capture_output=True, encoding="utf-8", timeout=_LONGEST, input="", check=True,
    )  # fmt: skip
    text: str = json.loads(done.stdout)["text"]
    return text


def decoding(card: Card, folder: Path) -> Iterator[Row]:
    """One process each: tokens per second with all, half and few experts on the card; the rest in RAM or on disk."""
    for shape in SHAPES:
        model = Model(shape, folder)
        formats_of = [("q4", model.store)] + ([("bf16", model.checkpoint)] if shape == SHAPES[0] else [])
        for dtype, make in formats_of:
            path = make()
            need = estimate_memory(model.spec, dtype, PROMPT + ANSWER)
            least, count = least_device(need), need.expert_count
            budgets: dict[str, tuple[int, int | None, str | None]] = {
                "all": (count, None, None),
                "half": (count // 2, None, None),
                "2 GiB": (min(count, (2 * 2**30 - least) // need.slot_bytes), None, None),
            }
            if dtype == "q4" and shape == SHAPES[0]:
                some = place(need, 0, least).least_ram + count // 4 * need.slot_bytes
                budgets["an eighth, 1/4 in RAM"] = count // 8, some, None
                budgets["all, by torch's operators"] = count, None, "torch"
            for name, (experts, ram, kernels) in budgets.items():
                vram = least + experts * need.slot_bytes
                try:
                    found = run_alone(path, card.device.type, vram, ram, kernels=kernels)
                except subprocess.SubprocessError as failure:
                    yield shape, dtype, name, failure
                    continue
                rate = read_bytes_per_token(model.spec, dtype) * found["decode"]
                yield (
                    shape, dtype, name, f"{found['prefill']:.0f}", f"{found['decode']:.1f}",
                    f"{rate / card.bandwidth:.2%}", f"{found['device_hits']:.0%}", f"{found['copied'] / 2**20:.1f}",
                    f"{vram / 2**20:.0f}", f"{found['used'] / 2**20:.0f}", f"{found['tensors'] / 2**20:.0f}",
                    f"{found['planned_rss'] / 2**20:.0f}", f"{found['rss'] / 2**20:.0f}", f"{found['load_s']:.1f}",
                )  # fmt: skip


def processors(folder: Path, counts: list[int]) -> Iterator[Row]:
    """The CPU alone by number of threads, one process each."""
    store = Model(SHAPES[0], folder).store()
    spec = Model(SHAPES[0], folder).spec
    for threads in counts:
        found = run_alone(store, "cpu", None, None, threads)
        rate = read_bytes_per_token(spec, "q4") * found["decode"]
        yield (
            threads, f"{found['prefill']:.1f}", f"{found['decode']:.1f}", f"{rate / 1e9:.1f}",
            f"{found['ram'] / 1e9:.1f}", f"{rate / found['ram']:.0%}",
        )  # fmt: skip


def run_alone(
    path: Path,
    device: str,
    vram: int | None,
    ram: int | None,
    threads: int | None = None,
    kernels: str | None = None,
) -> dict[str, float]:
    """`measure` in a process of its own; `kernels` as MOECLI_KERNEL names them."""
    asked = {"path": str(path), "device": device, "vram": vram, "ram": ram, "threads": threads}
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)} if threads else dict(os.environ)
    environment |= {"MOECLI_KERNEL": kernels} if kernels else {}
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
    parser.add_argument("--part", nargs="*", choices=PARTS, default=[])
    options = parser.parse_args()
    parts = options.part or PARTS
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    card = find_card(device)
    print(f"{card_name(device)}; {machine_name()}; torch {torch.__version__}")
    print(f"a copy within the card reads and writes {card.bandwidth / 1e9:,.0f} GB/s", flush=True)
    if "links" in parts:
        table("GB/s, record | pinned, to | from | torch's pinned, to | from | pageable, to | from", links(card))
    if "products" in parts:
        table("product | by | matrix | tokens | error | µs | GB/s | share of copy", products(card))
    if "tiny" in parts:
        table("tiny | experts on card | of 100 greedy tokens those of the CPU", tokens_of_tiny(card))
    if "decoding" in parts:
        head = (
            "shape | format | experts on card | prefill/s | decode/s | share of copy | hits on card | MiB copied/token"
        )
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
