"""moecli against llama.cpp and transformers on the same shapes: python -m benchmarks.peers FOLDER --llama-bench PATH

Writes what is missing in FOLDER, then measures in interleaved rounds: prefill, decode, and decode inside a memory
cgroup (needs root). Prints Markdown: medians, ratios, and the share of the memory bandwidth that decoding reaches.
What a program cannot do, and what is not there, is a dash.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

from benchmarks import cgroup, sides
from benchmarks.checkpoint import SHAPES
from benchmarks.machine_name import machine_name
from benchmarks.models import Model
from benchmarks.ratios import Samples, ratios, shares
from benchmarks.sides import Figures, IkLlamaCpp, LlamaCpp, Moecli, Side, Transformers, Work, decode, prefill
from moecli.planning import machine
from moecli.units import format_bytes, parse_size

_SHAPES = ("olmoe", "mixtral-4-layers")
_LIMITED_DEPTH = 128  # tokens before those that are decoded in little memory


def measure(model: Model, programs: Sequence[Side], work: Work, options: argparse.Namespace, samples: Samples) -> None:
    """Round by round each program in turn, every other round the other way about: the machine drifts for all alike."""
    for number in range(options.rounds):
        samples.bandwidths.append(sides.read_bandwidth())
        turn = [each for each in programs if number < _rounds(each, options)]
        for side in turn[:: -1 if number % 2 else 1]:
            _say(f"{model.shape}, round {number + 1}: {side.name}")
            samples.add(model, side, _figures(side, model, work, None, samples))
            if options.memory:
                limited = Work((), (_LIMITED_DEPTH,), work.tokens)
                found = _figures(side, model, limited, options.memory, samples)
                samples.add(model, side, found, _within(options.memory))


def _rounds(side: Side, options: argparse.Namespace) -> int:
    return min(options.rounds, options.slow_rounds) if isinstance(side, Transformers) else int(options.rounds)


def _figures(side: Side, model: Model, work: Work, limit: int | None, samples: Samples) -> Figures:
    """Nothing where it fails or cannot begin. In little memory its files come from the disk at first."""
    if not side.fits(model, limit):
        return {}
    files = side.files(model)
    try:
        with cgroup.limited(limit) if limit else nullcontext() as group:
            if limit:
                cgroup.forget(files)
            return side.measure(model, work, group)
    except (OSError, subprocess.CalledProcessError) as error:
        samples.failures.append(f"{model.shape}, {side.name}: {error}")
        _say(samples.failures[-1])
        return {}


def _within(memory: int) -> str:
    return f", in {format_bytes(memory)}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the models are, or are written")
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's own benchmark program")
    parser.add_argument("--ik-llama-bench", type=Path, help="that of ik_llama.cpp")
    parser.add_argument("--shapes", default=",".join(_SHAPES), help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rounds", type=int, default=2, help="of transformers; 0 leaves it out")
    parser.add_argument("--memory", type=parse_size, default="2GiB", help="of the cgroup; 0 leaves it out")
    parser.add_argument("--prompts", type=_counts, default="32,128,512")
    parser.add_argument("--depths", type=_counts, default="128,2048", help="tokens before those that are decoded")
    parser.add_argument("--tokens", type=int, default=64, help="decoded after each")
    parser.add_argument("--threads", type=int, default=machine.compute_threads(), help="default: one per core")
    parser.add_argument("--json", type=Path, help="write every single figure to this file")
    return parser.parse_args()


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def main() -> None:
    options = _options()
    sides.use_threads(options.threads)
    programs: list[Side] = [Moecli()]
    if options.llama_bench:
        programs.append(LlamaCpp(options.llama_bench))
    if options.ik_llama_bench:
        programs.append(IkLlamaCpp(options.ik_llama_bench))
    if options.slow_rounds and find_spec("transformers"):
        programs.append(Transformers())
    models = [Model(shape, options.folder) for shape in options.shapes.split(",")]
    for model in models:
        for side in programs:
            if side.fits(model, None):
                side.files(model)
    work = Work(options.prompts, options.depths, options.tokens)
    names = [*map(prefill, work.prompts), *map(decode, work.depths)]
    names += [decode(_LIMITED_DEPTH) + _within(options.memory)] if options.memory else []
    print(f"{machine_name()}; {options.threads} threads; {time.strftime('%Y-%m-%d')}.")
    print(f"{'; '.join(side.version for side in programs)}.")
    rounds = ", ".join(f"{side.name} {_rounds(side, options)}" for side in programs)
    print(f"Tokens per second, medians of interleaved rounds ({rounds}).")
    samples = Samples()
    for model in models:
        measure(model, programs, work, options, samples)
        print("", *ratios(model, programs, samples, names), sep="\n", flush=True)
        if options.json:
            options.json.write_text(json.dumps(_document(programs, samples, options), indent=2))
    print(f"\nBytes read, and which share of the RAM's {samples.bandwidth / 1e9:.1f} GB/s that makes.")
    print("", *shares(models, programs, samples, work), sep="\n")
    if samples.failures:
        print("\nFailed, and missing from the medians:\n", *samples.failures, sep="\n- ")


def _document(programs: Sequence[Side], samples: Samples, options: argparse.Namespace) -> dict[str, object]:
    return {
        "machine": machine_name(),
        "threads": options.threads,
        "versions": {side.name: side.version for side in programs},
        "bandwidth_bytes_per_s": samples.bandwidths,
        "failures": samples.failures,
        "measurements": [
            {"shape": shape, "side": side, "what": what, "tokens_per_s": rates}
            for (shape, side, what), rates in samples.rates.items()
        ],
    }


if __name__ == "__main__":
    main()
