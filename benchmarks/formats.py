"""Every format on one shape, all resident: python -m benchmarks.formats FOLDER [--shape small] [--formats q4,q8]

Packs what is missing in FOLDER, then runs `moecli bench` on each store in rounds that take turns, every measurement a
fresh process. Prints Markdown: decode with its share of the read bandwidth, prefill, peak memory beside the plan.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import cgroup, sides
from benchmarks.checkpoint import SHAPES
from benchmarks.machine_name import machine_name
from benchmarks.models import Model
from moecli.formats import FORMATS
from moecli.planning import machine

_HEAD = (
    "format",
    "MB per token",
    "decode/s",
    "of the bandwidth",
    "prefill/s",
    "planned MiB",
    "peak MiB",
    "planned / peak",
)


def measure(store: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What `moecli bench` says of one warm-up and one repetition."""
    command = [sys.executable, "-m", "moecli", "bench", str(store), "--json", "--quiet", "--yes", "--repeat", "1"]
    command += ["--prompt-tokens", str(options.prompt), "--max-tokens", str(options.tokens)]
    found: dict[str, Any] = json.loads(cgroup.run(command, accepted=(0, 3)))  # 3: not as fast as forecast, or faster
    return found


def row(dtype: str, found: list[dict[str, Any]], bandwidth: float) -> str:
    """Medians; bytes are those of the last round."""
    decode, prefill = (median(each[f"{what}_tokens_per_s"] for each in found) for what in ("decode", "prefill"))
    read, planned = found[-1]["read_bytes_per_token"], found[-1]["planned_bytes"]["ram"]
    peak = max(each["peak_rss_bytes"] for each in found)
    cells = (
        dtype, f"{read / 1e6:,.0f}", f"{decode:.1f}", f"{decode * read / bandwidth:.0%}", f"{prefill:,.0f}",
        f"{planned / 2**20:,.0f}", f"{peak / 2**20:,.0f}", f"{planned / peak:.3f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formats", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the stores are, or are written")
    parser.add_argument("--shape", default="small", choices=SHAPES)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt that the answer comes after")
    parser.add_argument("--tokens", type=int, default=64, help="of the answer")
    options = parser.parse_args()
    sides.use_threads(machine.compute_threads())
    formats, model = options.formats.split(","), Model(options.shape, options.folder)
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    bandwidths = []
    stores = {dtype: model.store(dtype) for dtype in formats}
    for number in range(options.rounds):
        bandwidths.append(sides.read_bandwidth())
        for dtype in formats[:: -1 if number % 2 else 1]:
            print(f"round {number + 1}: {dtype}", file=sys.stderr, flush=True)
            found[dtype].append(measure(stores[dtype], options))
    print(f"{machine_name()}; {machine.compute_threads()} threads; {time.strftime('%Y-%m-%d')}; {options.shape}.")
    middle, *ends = (each(bandwidths) / 1e9 for each in (median, min, max))
    print(f"Memory reads {middle:.1f} GB/s ({ends[0]:.1f} to {ends[1]:.1f}).\n")
    print(f"| {' | '.join(_HEAD)} |", f"|{'---|' * len(_HEAD)}", sep="\n")
    for dtype in formats:
        print(row(dtype, found[dtype], median(bandwidths)))


if __name__ == "__main__":
    main()
