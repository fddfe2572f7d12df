"""Planned against measured peak memory: python -m benchmarks.memory [FOLDER] [--streamed]

Runs `moecli run` on the built-in model and on a random 1.2 GB checkpoint (written to FOLDER, default a temporary
folder) with prompts that fill contexts of 512 and 8192 tokens, on the checkpoint also in every other format; then, or
with --streamed alone, on random checkpoints of about 1 GB whose experts are read from their own files, for they do not
fit in --ram. Prints a Markdown table.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from benchmarks import checkpoint, gguf_file
from moecli.formats import FORMATS


@dataclass(frozen=True, slots=True)
class Streamed:
    """A checkpoint that does not fit, and what is made of its experts as they are read."""

    name: str
    shape: str
    dtype: str
    ram: str
    gguf: bool = False


STREAMED = (
    Streamed("gpt-oss mxfp4", "gpt-oss-2-layers", "mxfp4", "800MiB"),
    Streamed("OLMoE GGUF Q4_0", "olmoe-4-layers", "q4_0", "700MiB", gguf=True),
    Streamed("OLMoE GGUF Q4_0", "olmoe-4-layers", "q4", "700MiB", gguf=True),
    Streamed("small bf16", "small", "bf16", "600MiB"),
    Streamed("small bf16", "small", "q4", "450MiB"),
)


def measure(model: str, context: int, dtype: str, ram: str | None = None) -> dict[str, int]:
    """Planned and measured bytes of one run whose prompt nearly fills `context`."""
    digits = "".join(random.Random(0).choices("0123456789", k=context - 16))  # the tokenizer splits every digit
    command = [sys.executable, "-m", "moecli", "run", model, "--ctx", str(context), "-n", "8", "--json", "--raw"]
    command += ["--dtype", dtype, *(["--ram", ram] if ram else []), "--yes"]
    result = subprocess.run(command, input=digits, capture_output=True, encoding="utf-8", check=True)
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
        name = "tiny" if model == "tiny" else "random 1.2 GB"
        yield name, dtype, context, measure(model, context, dtype)


def streamed_rows(folder: Path) -> Iterator[tuple[str, str, int, dict[str, int]]]:
    """Checkpoints in folders of `folder`, made where they are missing."""
    for each in STREAMED:
        target = folder / (f"{each.shape}.gguf" if each.gguf else each.shape)
        if not target.exists():
            (gguf_file.write if each.gguf else checkpoint.write)(each.shape, target)
        row = measure(str(target), 512, each.dtype, each.ram)
        yield f"{each.name}, --ram {each.ram}", each.dtype, 512, row


def main() -> None:
    print("| model | format | context | prompt tokens | planned MiB | measured MiB | planned / measured |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        given = [Path(each) for each in sys.argv[1:] if each != "--streamed"]
        folder = given[0] if given else Path(scratch)
        plain = rows(folder) if "--streamed" not in sys.argv else ()
        for name, dtype, context, row in chain(plain, streamed_rows(folder)):
            planned, measured = row["planned"] / 2**20, row["measured"] / 2**20
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
