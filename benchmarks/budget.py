"""A model twice as large as the memory it gets: python -m benchmarks.budget FOLDER [GIB]

A random q4 store of OLMoE's shape (4 GB, written to FOLDER if it is not there), inside a memory cgroup (2 GiB): read
by plain O_DIRECT threads, then generating 200 tokens after a prompt of 500. Needs root.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from pathlib import Path

import torch

from benchmarks import cgroup
from benchmarks.machine_name import machine_name
from benchmarks.models import Model
from moecli.experts.arena import Arena
from moecli.store.packed import PackedStore

THREADS = 4
READ = 2**31  # bytes that the plain reader reads
PROMPT, ANSWER = 500, 200


def plain_reader(folder: Path) -> float:
    """Bytes per second of threads that read random records into their own buffer and do nothing else."""
    packed = PackedStore.open(folder)
    layers = [packed.experts(layer) for layer, _ in packed.spec.mixtures]
    stride = packed.record(0).stride
    records = [(each.path, each.offset + n * stride) for each in layers for n in range(each.shape[0])]
    random.Random(0).shuffle(records)
    records = records[: READ // stride]
    arena = Arena(THREADS, stride)
    taken = iter(records)
    lock = threading.Lock()

    def work(index: int) -> None:
        descriptors: dict[Path, int] = {}
        while True:
            with lock:
                record = next(taken, None)
            if record is None:
                return
            path, offset = record
            if path not in descriptors:
                descriptors[path] = os.open(path, os.O_RDONLY | os.O_DIRECT)
            os.preadv(descriptors[path], [arena.memory(index)], offset)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(THREADS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(records) * stride / (time.perf_counter() - began)


def main() -> None:
    limit = int(float(sys.argv[2]) * 2**30) if len(sys.argv) > 2 else 2 * 2**30
    target = Model("olmoe", Path(sys.argv[1])).store()
    size = sum(file.stat().st_size for file in target.iterdir())
    digits = "".join(random.Random(0).choices("0123456789", k=PROMPT - 1))  # the tokenizer splits every digit
    command = [sys.executable, "-m", "moecli", "run", str(target), "--raw", "--json", "--yes", "-n", str(ANSWER)]
    with cgroup.limited(limit) as group:
        reader = [sys.executable, "-m", "benchmarks.budget", "--read", str(target)]
        plain = float(cgroup.run(reader, group))
        found = json.loads(cgroup.run([*command, "--temperature", "1", "--seed", "1"], group, digits))
    cache, planned = found["expert_cache"], found["planned_bytes"]["ram"]
    rate = cache["bytes_read"] / cache["read_s"]
    spent = found["prefill_s"] + found["decode_s"]
    hits = cache["hits"] / (cache["hits"] + cache["misses"])
    print(f"{machine_name()}; {size / 1e9:.2f} GB q4 store in a {limit / 2**30:g} GiB memory cgroup\n")
    print("| | |\n|---|---|")
    for name, text in (
        (f"prompt, {found['prompt_tokens']} tokens", f"{found['prefill_s']:.1f} s"),
        (f"decode, {found['completion_tokens']} tokens", f"{found['decode_tokens_per_s']:.2f} tokens/s"),
        ("experts in RAM", f"{cache['budget_bytes'] / 2**20:,.0f} MiB, hit rate {hits:.1%}"),
        ("peak memory", f"{found['peak_rss_bytes'] / 2**20:,.0f} MiB (planned {planned / 2**20:,.0f})"),
        ("disk reads, while reads are under way", f"{rate / 1e9:.2f} GB/s, {cache['read_s'] / spent:.0%} of the time"),
        ("plain O_DIRECT reader, same run", f"{plain / 1e9:.2f} GB/s"),
        ("share of it", f"{rate / plain:.0%}"),
        ("waiting for the disk", f"{cache['wait_s'] / spent:.0%} of the time"),
    ):
        print(f"| {name} | {text} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        torch.set_num_threads(1)
        print(plain_reader(Path(sys.argv[2])))
    else:
        main()
