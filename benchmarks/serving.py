"""How a server's throughput grows with its clients: python -m benchmarks.serving [MODEL] [TOKENS]

Tokens per second of 1, 2, 4 and 8 clients of a `moecli serve` of its own, with answers of TOKENS (128) tokens each;
medians of three rounds that take turns.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.machine_name import machine_name

CLIENTS = 1, 2, 4, 8
ROUNDS = 3


def ask(url: str, model: str, seed: int, tokens: int) -> int:
    """Tokens of one answer."""
    body = {"model": model, "prompt": f"{seed}. The sea was", "seed": seed, "max_tokens": tokens, "temperature": 1}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as answer:
        found: dict[str, Any] = json.load(answer)
    return int(found["usage"]["completion_tokens"])


def rate(url: str, model: str, clients: int, tokens: int, seed: int) -> float:
    """Tokens per second of so many clients at once."""
    with ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        made = sum(pool.map(lambda number: ask(url, model, seed + number, tokens), range(clients)))
        return made / (time.perf_counter() - began)


def main() -> None:
    model, tokens = (*sys.argv[1:], *("tiny", "128")[len(sys.argv) - 1 :])
    command = [sys.executable, "-m", "moecli", "serve", model, "--port", "0", "--quiet", "--yes"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
    rates = defaultdict[int, list[float]](list)
    try:
        assert process.stdout
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/v1/models") as answer:
            name = str(json.load(answer)["data"][0]["id"])
        ask(url, name, 0, 8)  # loads it
        for number in range(ROUNDS):
            for clients in CLIENTS:
                rates[clients].append(rate(url, name, clients, int(tokens), 100 * number + 10 * clients))
    finally:
        process.terminate()
        process.wait()
    print(f"{machine_name()}; {model}, answers of {tokens} tokens\n")
    print("| clients | tokens/s | of one |\n|---|---|---|")
    for clients in CLIENTS:
        ratio = statistics.median(some / one for some, one in zip(rates[clients], rates[1], strict=True))
        print(f"| {clients} | {statistics.median(rates[clients]):.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
