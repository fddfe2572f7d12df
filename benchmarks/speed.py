"""Prefill and decode against transformers on the same files, in the same run: python -m benchmarks.speed [FOLDER]

The built-in model, and a random 1.2 GB Mixtral (written to FOLDER, default a temporary folder). Each figure is the
median of interleaved repetitions; the table names the machine. Compute threads: one per core.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

import moecli
from benchmarks import checkpoint
from benchmarks.machine_name import machine_name
from moecli import machine
from moecli.engine.load import open_model
from moecli.plan import fit

PROMPTS = (32, 128, 512)
DECODED = 32
REPEATS = 5

Measure = Callable[[torch.Tensor], tuple[float, float]]  # prompt [T] -> seconds of prefill, seconds per decoded token


def ours(folder: Path) -> Measure:
    model = open_model(folder)
    decoder = model.decoder(fit(model.spec, "bf16", 1024, machine.free_ram()))

    def run(prompt: torch.Tensor) -> tuple[float, float]:
        cache = decoder.new_cache(len(prompt) + DECODED, 512)
        began = time.perf_counter()
        token = decoder.logits(decoder.forward(prompt, cache)[-1:]).argmax(-1)
        prefill = time.perf_counter() - began
        for _ in range(DECODED):
            token = decoder.logits(decoder.forward(token, cache)).argmax(-1)
        return prefill, (time.perf_counter() - began - prefill) / DECODED

    return run


def theirs(folder: Path) -> Measure:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def run(prompt: torch.Tensor) -> tuple[float, float]:
        with torch.inference_mode():
            began = time.perf_counter()
            out = model(prompt[None], use_cache=True, logits_to_keep=1)
            prefill = time.perf_counter() - began
            for _ in range(DECODED):
                token = out.logits[:, -1:].argmax(-1)
                out = model(token, past_key_values=out.past_key_values, use_cache=True)
        return prefill, (time.perf_counter() - began - prefill) / DECODED

    return run


def table(name: str, folder: Path) -> None:
    """Rows of a Markdown table: tokens per second, moecli then transformers, and the ratio."""
    runs = (ours(folder), theirs(folder))
    vocabulary = open_model(folder).spec.vocab_size
    for length in PROMPTS:
        prompt = torch.randint(3, vocabulary, (length,), generator=torch.Generator().manual_seed(length))
        for run in runs:
            run(prompt)
        times = [[run(prompt) for run in runs] for _ in range(REPEATS)]
        for what, index, tokens in (("prefill", 0, length), ("decode", 1, 1)):
            mine, other = (tokens / statistics.median(row[side][index] for row in times) for side in (0, 1))
            print(f"| {name} | {what} {length} | {mine:,.0f} | {other:,.0f} | {mine / other:.1f}x |", flush=True)


def main() -> None:
    torch.set_num_threads(machine.compute_threads())
    print(f"{machine_name()}; bf16; torch {torch.__version__}, transformers {transformers.__version__}\n")
    print("| model | tokens | moecli tok/s | transformers tok/s | ratio |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else scratch)
        if not (folder / "config.json").is_file():
            checkpoint.write("small", folder)
        table("tiny", Path(moecli.__file__).parent / "tiny")
        table("random 1.2 GB, 64 experts", folder)


if __name__ == "__main__":
    main()
