"""What a busy program beside it costs a run: python -m benchmarks.neighbour [MODEL] [TOKENS]

Each figure is the median of five fresh processes that take turns: alone and beside a loop that wants one processor,
with the threads `run` takes by itself and with one.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from benchmarks.machine_name import machine_name

ROUNDS = 5
LONGEST = 120  # seconds that the loop lives, should this program die
PROMPT = "The sea was calm that morning, and nobody on the shore had seen the boat. " * 25
SIDES = {"by default": (), "`--threads 1`": ("--threads", "1")}
FIGURES = {"decode": ("completion_tokens", "decode_s"), "prefill": ("prompt_tokens", "prefill_s")}


@contextmanager
def busy_loop() -> Iterator[None]:
    """Another program that wants a whole processor for as long as the block lasts."""
    code = f"import time\nend = time.time() + {LONGEST}\nwhile time.time() < end: pass"
    loop = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        loop.kill()
        loop.wait()


def rates(model: str, tokens: int, *options: str) -> dict[str, float]:
    """Tokens per second of one run, as its JSON says."""
    command = [sys.executable, "-m", "moecli", "run", model, PROMPT, "-n", str(tokens), "--temperature", "0"]
    found = json.loads(subprocess.run([*command, "--json", "--yes", *options], capture_output=True, check=True).stdout)
    return {name: found[count] / found[seconds] for name, (count, seconds) in FIGURES.items()}


def main() -> None:
    model, tokens = (*sys.argv[1:], *("tiny", "200")[len(sys.argv) - 1 :])
    measured: dict[tuple[str, str, bool], list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        for busy in (False, True):
            for side, options in SIDES.items():
                with busy_loop() if busy else nullcontext():
                    for figure, rate in rates(model, int(tokens), *options).items():
                        measured[figure, side, busy].append(rate)
    print(f"{machine_name()}; {model}, tokens per second\n")
    print("| | | alone | beside a busy loop |\n|---|---|---|---|")
    for figure in FIGURES:
        for side in SIDES:
            alone, beside = (statistics.median(measured[figure, side, busy]) for busy in (False, True))
            print(f"| {figure} | {side} | {alone:,.0f} | {beside:,.0f} |")


if __name__ == "__main__":
    main()
