"""What answering prompts together brings: python -m benchmarks.batches [STORE] [PROMPTS] [TOKENS]

PROMPTS (64) prompts through a packed store with RAM for half of its experts: a batch of all, and some runs of one
prompt each, whose mean stands for all. Without STORE a q8 store of random numbers is made, of about 380 MB. Seconds are
those of whole processes; what both say is compared.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import checkpoint
from benchmarks.machine_name import machine_name
from moecli.engine.load import open_model
from moecli.planning.memory import estimate_memory
from moecli.planning.placement import place

ALONE = 6  # prompts that are run alone, for all of them
WORDS = "the sea was calm and a ship far away while its captain slept under stars that nobody saw".split()
SHAPE = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 1024, "intermediate_size": 1792,
    "num_attention_heads": 16, "num_key_value_heads": 4, "num_local_experts": 16, "num_experts_per_tok": 2,
    "num_hidden_layers": 4, "vocab_size": 8192, "max_position_embeddings": 4096, "dtype": "bfloat16",
}  # fmt: skip


def made(folder: Path) -> Path:
    """A store of SHAPE."""
    checkpoint.SHAPES["batches"] = SHAPE
    checkpoint.pack("batches", folder / "store", "q8")
    return folder / "store"


def half(store: Path, context: int) -> int:
    """Bytes of RAM with which a text of `context` tokens has half of the experts in memory."""
    model = open_model(store)
    memory = estimate_memory(model.spec, model.dtypes[0], context)
    return place(memory, 0).least_ram + memory.expert_count // 2 * memory.slot_bytes


def run(store: Path, ram: int, tokens: int, *options: str) -> tuple[str, float]:
    """What a run says, and its seconds."""
    command = [sys.executable, "-m", "moecli", "run", str(store), "--raw", "--yes", "--quiet", "--seed", "1"]
    began = time.perf_counter()
    done = subprocess.run([*command, "-n", str(tokens), "--ram", f"{ram}B", *options], capture_output=True, check=True)
    return done.stdout.decode(), time.perf_counter() - began


def main() -> None:
    arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        store = Path(arguments[0]) if arguments else made(Path(folder))
        count, tokens = (int(each) for each in (*arguments[1:], *("64", "32")[len(arguments[1:]) :]))
        chance = random.Random(0)
        prompts = [" ".join(chance.choices(WORDS, k=chance.randint(12, 40))) for _ in range(count)]
        file = Path(folder) / "prompts.jsonl"
        file.write_text("".join(f"{json.dumps({'prompt': each})}\n" for each in prompts))
        ram = half(store, 256)
        text, together = run(store, ram, tokens, "--prompts", str(file))
        lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
        alone, same = [], True
        for number in range(0, count, -(-count // ALONE)):
            text, seconds = run(store, ram, tokens, "--json", "-p", prompts[number])
            same = same and json.loads(text)["token_ids"] == lines[number]["token_ids"]
            alone.append(seconds)
        size = sum(each.stat().st_size for each in store.iterdir())
    each = sum(alone) / len(alone)
    print(f"{machine_name()}; a store of {size / 1e6:,.0f} MB, {ram / 2**20:,.0f} MiB of RAM, {tokens} tokens each\n")
    print("| | seconds |\n|---|---|")
    print(f"| {count} prompts together | {together:.1f} |")
    print(f"| one alone, mean of {len(alone)} | {each:.1f} |")
    print(f"| {count} alone | {count * each:.0f} |")
    print(f"\ntogether / alone: {together / (count * each):.3f}; the same tokens: {'yes' if same else 'NO'}")


if __name__ == "__main__":
    main()
