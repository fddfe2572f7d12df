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
# In a process of its own, by the driver's count: with the context and all that libraries keep.
MEASURE = """
import json, os, subprocess, sys, torch
from pathlib import Path
from moecli.engine.answer import Answer
from moecli.engine.chat import ChatSession, GenerationConfig, plan_for
from moecli.engine.loaded import LoadOptions, open_for_run
from moecli.engine.sampling import Sampling
from moecli.library.resolve import resolve
from moecli.store.progress import silent

folder, vram, tokens, answer = sys.argv[1], *map(int, sys.argv[2:])
opened = open_for_run(resolve(folder), LoadOptions(device="cuda", vram=vram))
config = GenerationConfig(Sampling(temperature=0.0), 0, answer, raw=True)
text = "7" * tokens
plan = plan_for(opened, config, text)
session = ChatSession(opened.load(plan, silent), config)
for _ in range(2):
    list(session.ask(text, Answer()))
    session.clear()
asked = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
lines = [line.split(", ") for line in subprocess.check_output(asked, text=True).splitlines()]
held = [int(used) * 2**20 for pid, used in lines if pid == str(os.getpid()) and used.isdigit()]
print(json.dumps({
    "planned": plan.device.total, "experts": plan.device.experts, "count": plan.memory.expert_count,
    "tensors": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved(),
    "used": held[0] if held else None,
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 400 MB in bf16."""
    return random_mixtral(
        tmp_path_factory.mktemp("memory") / "random",
        hidden_size=512, intermediate_size=1024, num_local_experts=16, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=8000, max_position_embeddings=2048,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["bf16", "q4"])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_the_budget_holds(dtype: str, share: float, folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    need = estimate_memory(read_spec(config), dtype, PROMPT + ANSWER + 8)
    vram = least_device(need) + int(share * need.expert_count) * need.slot_bytes
    source = folder if dtype == "bf16" else packed(folder, tmp_path / "store", dtype).folder
    command = [sys.executable, "-c", MEASURE, *map(str, (source, vram, PROMPT, ANSWER))]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(
        dtype, share, {name: value and value >> 20 for name, value in found.items() if name not in ("experts", "count")}
    )
    assert found["experts"] >= int(share * need.expert_count) - 1
    assert found["planned"] <= vram
    assert found["used"] is None or found["used"] <= vram
    assert found["reserved"] <= vram


def test_what_is_free_is_asked_of_the_card(card: torch.device) -> None:
    from moecli.engine.device import free_vram

    total = torch.cuda.get_device_properties(card).total_memory
    assert 0 < free_vram(card) < total
