"""What reading nothing twice brings: python -m benchmarks.reuse [MODEL] [TOKENS]

A turn after TOKENS (4,000) of history, in fresh processes: with an empty session; the next turn, with the file that the
first one left, and without it. Seconds to the first token, tokens that were fed, and whether both answers are the same.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine_name import machine_name

TEXT = "The sea was calm and the ship was far away, and the captain slept. "


def turn(model: str, text: str, *options: str) -> dict[str, Any]:
    """One run, as its JSON says."""
    command = [sys.executable, "-m", "moecli", "run", model, "--raw", "--json", "--yes", "-n", "40", "--seed", "1"]
    return dict(json.loads(subprocess.run([*command, *options], input=text.encode(), capture_output=True).stdout))


def main() -> None:
    model, tokens = (*sys.argv[1:], *("tiny", "4000")[len(sys.argv) - 1 :])
    each = turn(model, TEXT * 8, "--ctx", "1024")["prompt_tokens"] / 8
    history = TEXT * int(int(tokens) / each)
    context = ("--ctx", str(int(tokens) + 512))
    with tempfile.TemporaryDirectory() as folder:
        kept = ("--session", str(Path(folder) / "session"))
        first = turn(model, history, *context, *kept)
        following = f"{history}{first['text']} Then the wind came, and the captain woke. "
        later = turn(model, following, *context, *kept)
        size = (Path(folder) / "session").stat().st_size
    plain = turn(model, following, *context)
    print(f"{machine_name()}; {model}, a session of {size / 1e6:.1f} MB\n")
    print("| turn | prompt | fed | first token after |\n|---|---|---|---|")
    for name, found in (("first", first), ("second, after a restart", later), ("second, without the file", plain)):
        fed = found["prompt_tokens"] - found["cached_tokens"]
        print(f"| {name} | {found['prompt_tokens']:,} | {fed:,} | {found['prefill_s']:.2f} s |")
    same = "the same" if later["token_ids"] == plain["token_ids"] else "ANOTHER ANSWER"
    print(f"\nsecond / first: {later['prefill_s'] / first['prefill_s']:.3f}; tokens of the second: {same}")


if __name__ == "__main__":
    main()
