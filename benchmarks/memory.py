"""Planned against measured peak memory: python -m benchmarks.memory [FOLDER]

Runs `moecli run` on the built-in model and on a random 1.2 GB checkpoint (written to FOLDER, default a temporary
folder) with prompts that fill contexts of 512 and 8192 tokens, on the checkpoint also in every other format, and prints
a Markdown table.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import checkpoint
from moecli.formats import FORMATS


def measure(model: str, context: int, dtype: str) -> dict[str, int]:
    """Planned and measured bytes of one run whose prompt nearly fills `context`."""
    digits = "".join(random.Random(0).choices("0123456789", k=context - 16))  # the tokenizer splits every digit
    command = [sys.executable, "-m", "moecli", "run", model, "--ctx", str(context), "-n", "8", "--json", "--raw"]
    result = subprocess.run(
        [*command, "--dtype", dtype], input=digits, capture_output=True, encoding="utf-8", check=True
    )
    document = json.loads(result.stdout)
    return {
        "tokens": document["prompt_tokens"],
        "planned": document["planned_bytes"]["ram"],
        "measured": document["peak_rss_bytes"],
    }


def rows(folder: Path) -> Iterator[tuple[str, str, int, dict[str, int]]]:
    """Both models at both contexts, and one of them in every format."""
    if not (folder / "config.json").is_file():
        checkpoint.write("small", folder)
    cases = [(model, "bf16", context) for model in ("tiny", str(folder)) for context in (512, 8192)]
    cases += [(str(folder), dtype, 512) for dtype in FORMATS if dtype != "bf16"]
    for model, dtype, context in cases:
        yield model, dtype, context, measure(model, context, dtype)


def main() -> None:
    print("| model | format | context | prompt tokens | planned MiB | measured MiB | planned / measured |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for model, dtype, context, row in rows(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch)):
            planned, measured = row["planned"] / 2**20, row["measured"] / 2**20
            name = "tiny" if model == "tiny" else "random 1.2 GB"
            cells = (
                name,
                dtype,
                context,
                row["tokens"],
                f"{planned:.0f}",
                f"{measured:.0f}",
                f"{planned / measured:.3f}",
            )
            print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()
