"""A real card as placement and forecasts see it: what it has, how fast it is, and what happens when it is full."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moecli.engine import fallback
from moecli.engine.answer import Answer
from moecli.engine.chat import ChatSession, GenerationConfig, plan_for
from moecli.engine.device import examine
from moecli.engine.loaded import LoadOptions, open_for_run
from moecli.engine.sampling import Sampling
from moecli.library.resolve import resolve
from moecli.planning import measured
from moecli.planning.estimate import Budget
from tests.support.stores import random_mixtral

pytestmark = pytest.mark.gpu

GREEDY = GenerationConfig(Sampling(temperature=0.0), 0, 16, raw=True)


def test_a_card_is_measured_once(card: torch.device) -> None:
    first = examine(card)
    assert first.name == torch.cuda.get_device_name(card)
    assert 0 < first.free < torch.cuda.get_device_properties(card).total_memory
    assert first.speeds.memory > first.speeds.up > 1e9 and first.speeds.down > 1e9
    assert measured.recall_card() == first and examine(card).speeds == first.speeds
    budget = Budget.of("64GiB")
    assert budget.card is not None and budget.card.name == first.name
    assert budget.bandwidths.sources.link == "measured"


def test_a_card_that_fills_up_is_given_less(card: torch.device, tmp_path: Path) -> None:
    """While it answers, torch may take no more of it than the model has already."""
    folder = random_mixtral(
        tmp_path / "random",
        hidden_size=512, intermediate_size=1024, num_local_experts=16, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=8000, max_position_embeddings=2048,
    )  # fmt: skip
    opened, warnings, text = open_for_run(resolve(str(folder)), LoadOptions(dtype="bf16")), list[str](), "7" * 900
    plan = plan_for(opened, GREEDY, text)
    assert plan.device.experts == plan.memory.expert_count
    session = ChatSession(fallback.load(opened, plan, warn=warnings.append), GREEDY, warnings.append)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(card).total_memory
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved(card) / total, card)
    try:
        answer = Answer()
        list(session.ask(text, answer))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, card)
    assert len(answer.token_ids) == 16 or answer.finish_reason == "stop"
    assert warnings and warnings[0].startswith(f"{card} ran out of memory: it goes on with ")
    assert session.loaded.plan.device.experts < plan.device.experts
