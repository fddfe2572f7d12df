"""Prefill and decode of transformers: python -m benchmarks.transformers_speed CHECKPOINT 32,128,512 128,2048 64

The lengths of the prompts, after how many tokens to decode, and how many. Writes tokens per second as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
import transformers

from benchmarks.sides import Figures, decode, prefill
from moecli.planning import machine


def measure(folder: str, prompts: list[int], depths: list[int], tokens: int) -> Figures:
    """Each length warmed up by itself. Decoded ids are random, so that experts vary as they do in llama-bench."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.eval()
    random = torch.Generator().manual_seed(0)

    def ids(count: int) -> torch.Tensor:
        return torch.randint(model.config.vocab_size, (1, count), generator=random)

    figures: Figures = {}
    with torch.inference_mode():
        for length in sorted({*prompts, *depths}):
            model(ids(length), logits_to_keep=1)
            began = time.perf_counter()
            cache = model(ids(length), use_cache=True, logits_to_keep=1).past_key_values
            if length in prompts:
                figures[prefill(length)] = length / (time.perf_counter() - began)
            if length in depths:
                model(ids(1), past_key_values=cache, use_cache=True)
                began = time.perf_counter()
                for _ in range(tokens):
                    model(ids(1), past_key_values=cache, use_cache=True)
                figures[decode(length)] = tokens / (time.perf_counter() - began)
    return figures


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


if __name__ == "__main__":
    torch.set_num_threads(machine.compute_threads())
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder, prompts, depths, tokens = sys.argv[1:]
    print(json.dumps(measure(folder, _numbers(prompts), _numbers(depths), int(tokens))))
