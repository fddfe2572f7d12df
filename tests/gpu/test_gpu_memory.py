"""A process on the card holds no more than --vram, and about what the plan says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moecli.model.families import read_spec
from moecli.planning.memory import estimate_memory
from moecli.planning.placement import least_device
from tests.support.stores import packed, random_mixtral

pytestmark = pytest.mark.gpu

PROMPT, ANSWER = 900, 16
# By format: the share of the experts that the budget has room for.
SHARES = {"bf16": (1.0, 0.0), "q4": (0.5,)}
# One process, for all that other tests left in theirs; by the driver's count, which has the context and what libraries
# keep. One budget after another: what the first has loaded stays, as it would in any run.
MEASURE = """
import gc, json, sys, torch
from moecli.engine.answer import Answer
from moecli.engine.chat import ChatSession, GenerationConfig, plan_for
from moecli.engine.loaded import LoadOptions, open_for_run
from moecli.engine.sampling import Sampling
from moecli.library.resolve import resolve
from moecli.store.progress import silent

free, tokens, answer, budgets = json.loads(sys.argv[1])
text = "7" * tokens

def measure(folder, vram):
    opened = open_for_run(resolve(folder), LoadOptions(device="cuda", vram=vram))
    config = GenerationConfig(Sampling(temperature=0.0), 0, answer, raw=True)
    plan = plan_for(opened, config, text)
    session = ChatSession(opened.load(plan, silent), config)
    for _ in range(2):
        list(session.ask(text, Answer()))
        session.clear()
    reserved = torch.cuda.max_memory_reserved()
    return {
        "experts": plan.device.experts, "planned": plan.device.total,
        "tensors": torch.cuda.max_memory_allocated(), "reserved": reserved,
        "used": free - torch.cuda.mem_get_info()[0] + reserved - torch.cuda.memory_reserved(),
    }

for folder, vram in budgets:
    print(json.dumps(measure(folder, vram)), flush=True)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
"""


def test_the_budget_holds(card: torch.device, tmp_path: Path) -> None:
    """A random model of 200 MB in bf16: all of its experts on the card, none of them, and half of them in q4."""
    folder = random_mixtral(
        tmp_path / "random",
        hidden_size=512, intermediate_size=1024, num_local_experts=16, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=8000, max_position_embeddings=2048,
    )  # fmt: skip
    spec = read_spec(json.loads((folder / "config.json").read_text()))
    cases = []
    for dtype, shares in SHARES.items():
        need = estimate_memory(spec, dtype, PROMPT + ANSWER + 8)
        source = folder if dtype == "bf16" else packed(folder, tmp_path / "store", dtype).folder
        for share in shares:
            count = int(share * need.expert_count)
            cases.append((f"{dtype} {share:.0%}", str(source), least_device(need) + count * need.slot_bytes, count))
    free, _ = torch.cuda.mem_get_info(card)
    budgets = [(source, vram) for _, source, vram, _ in cases]
    asked = json.dumps((free, PROMPT, ANSWER, budgets))
    done = subprocess.run([sys.executable, "-c", MEASURE, asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for (name, _, vram, count), line in zip(cases, done.stdout.splitlines(), strict=True):
        found = json.loads(line)
        print(name, "in MiB:", {key: value >> 20 for key, value in found.items() if key != "experts"})
        assert found["experts"] >= count - 1, name
        assert found["planned"] <= vram and found["used"] <= vram, (name, vram, found)


def test_what_is_free_is_asked_of_the_card(card: torch.device) -> None:
    from moecli.engine.device import free_vram

    total = torch.cuda.get_device_properties(card).total_memory
    assert 0 < free_vram(card) < total
