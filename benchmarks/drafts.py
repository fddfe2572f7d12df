"""What guessing ahead brings and costs: python -m benchmarks.drafts [MODEL] [TOKENS]

Tokens per second of `moecli run` with `--draft lookup` and off, medians of five fresh processes that take turns, on a
text that repeats itself (the most likely tokens after a line said twelve times) and on one that does not (tokens drawn
at temperature 1); whether both answers are the same.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections import defaultdict

from benchmarks.machine_name import machine_name

ROUNDS = 5
PROMPT = "the quick brown fox jumps over the lazy dog, and\n" * 12
TEXTS = {"repeats itself": "0", "does not": "1"}  # temperatures
WAYS = "lookup", "off"


def answer(model: str, tokens: int, temperature: str, way: str) -> dict[str, object]:
    """One run, as its JSON says."""
    command = [sys.executable, "-m", "moecli", "run", model, PROMPT, "--raw", "-n", str(tokens), "--json", "--yes"]
    command += ["--temperature", temperature, "--seed", "1", "--draft", way]
    if temperature != "0":
        command += ["--top-p", "1", "--top-k", "0", "--min-p", "0"]
    found: dict[str, object] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found


def main() -> None:
    model, tokens = (*sys.argv[1:], *("tiny", "300")[len(sys.argv) - 1 :])
    print(f"{machine_name()}; {model}, tokens per second\n")
    print("| the text | off | lookup | lookup / off | guesses right | the same tokens |\n|---|---|---|---|---|---|")
    for name, temperature in TEXTS.items():
        rates, answers = defaultdict[str, list[float]](list), []
        guesses = ""
        for _ in range(ROUNDS):
            for way in WAYS:
                found = answer(model, int(tokens), temperature, way)
                rates[way].append(float(str(found["decode_tokens_per_s"])))
                answers.append(found["token_ids"])
                if way == "lookup":
                    guesses = f"{found['drafted_tokens_right']} of {found['drafted_tokens']}"
        lookup, off = (statistics.median(rates[way]) for way in WAYS)
        ratio = statistics.median(one / other for one, other in zip(*(rates[way] for way in WAYS), strict=True))
        same = "yes" if all(each == answers[0] for each in answers) else "NO"
        print(f"| {name} | {off:.1f} | {lookup:.1f} | {ratio:.2f} | {guesses} | {same} |", flush=True)


if __name__ == "__main__":
    main()
