"""A model opened for a run: one budget for all that is compared, and messages that name what the user can change."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

import moecli
from moecli.engine.answer import Answer
from moecli.engine.chat import ChatSession, GenerationConfig, RecordedSession, plan_for
from moecli.engine.loaded import LoadOptions, OpenedModel, open_for_run
from moecli.engine.recorder import new_builders
from moecli.engine.sampling import Sampling, SamplingOptions
from moecli.errors import MoecliError, NotEnoughMemory
from moecli.library.resolve import Kind, ModelRef
from moecli.planning import machine
from moecli.planning.measured import Card, CardSpeeds, recall_card
from moecli.planning.placement import fit
from moecli.text.defaults import GenerationDefaults

TINY = Path(moecli.__file__).parent / "tiny"
GREEDY = GenerationConfig(Sampling(), 0, max_tokens=6, raw=True)


def opened(**options: object) -> OpenedModel:
    return open_for_run(ModelRef("./tiny", "tiny", Kind.FOLDER, TINY), LoadOptions(threads=1, **options))


def silent(done: int, total: int) -> None:
    """Nobody watches."""


def test_free_memory_is_measured_once_and_all_formats_meet_that_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose free memory shrinks with each look at it."""
    looks = count()
    monkeypatch.setattr(machine, "free_ram", lambda: 3 * 2**20 - next(looks) * 2**20)
    one = opened()
    budgets = []
    with pytest.raises(NotEnoughMemory, match="budget is 3 MiB"):
        one.choose(lambda dtype: budgets.append(one.ram) or fit(one.spec, dtype, 64, one.ram))  # type: ignore[func-returns-value]
    assert len(budgets) > 2 and set(budgets) == {3 * 2**20} == {one.ram}
    assert next(looks) == 1


def test_a_budget_that_was_asked_for_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_ram", lambda: pytest.fail("measured"))
    assert opened(ram=2**33).plan(64).ram_budget == 2**33


@pytest.mark.parametrize(
    ("device", "dtype", "kernels", "there"),
    [
        ("auto", "bf16", False, True), ("auto", "q4", False, False), ("auto", "q4", True, True),
        ("cuda", "q4", False, True), ("auto", "q4", None, True),
    ],
)  # fmt: skip
def test_a_device_nobody_named_gets_no_format_without_a_kernel_there(
    device: str, dtype: str, kernels: bool | None, there: bool
) -> None:
    one = opened(ram=2**33, dtype=dtype)
    card = None if kernels is None else Card("A card", 2**32, kernels, CardSpeeds(3e11, 2e10, 2e10))
    options = replace(one.options, device=device)
    one = replace(one, vram=2**32, options=options, asked_device=torch.device("cuda"), card=card)
    assert (one.plan(64).device.dense > 0) == there


def test_a_forecast_is_made_of_what_is_known_of_the_card() -> None:
    one = replace(opened(ram=2**33), vram=2**32, asked_device=torch.device("cuda"))
    plan = one.plan(64)
    assert plan.device.dense and one.estimate_throughput(plan).evidence == "typical"
    cards = [Card("A card", 2**32, True, CardSpeeds(speed, 2e10, 2e10)) for speed in (3e11, 3e9)]
    fast, slow = (replace(one, card=card).estimate_throughput(plan) for card in cards)
    assert fast.evidence == slow.evidence == "measured" and fast.high > slow.high


def test_the_rates_of_a_run_are_remembered_with_its_card() -> None:
    """A second arena in the role of the device; of a model that is all in RAM there are none."""
    one = replace(opened(ram=2**33), vram=2**32, card=Card("A card", 2**32, True, CardSpeeds(3e11, 2e10, 2e10)))
    plan = one.plan(64)
    loaded = one.load(plan, silent)
    found = recall_card()
    assert found is not None and found.of(plan.memory) == loaded.rates is not None
    assert one.known_rates(plan) is None and replace(one, card=found).known_rates(plan) == loaded.rates
    in_ram = replace(one, vram=None, card=found).plan(64)
    assert replace(one, card=found).known_rates(in_ram) is None and one.load(in_ram, silent).rates is None
    assert recall_card() == found


def test_hints_repeat_the_model_as_it_was_typed() -> None:
    with pytest.raises(NotEnoughMemory, match=r"'\./tiny' in bf16 needs") as error:
        opened(ram=2**20).plan(64)
    assert "moecli pack ./tiny --dtype q4" in str(error.value.hint)


def test_the_cache_holds_the_prompt_and_its_answer_or_a_chat() -> None:
    one = opened(ram=2**33)
    prompt = plan_for(one, GREEDY, "The sea").memory.context
    assert prompt < 20 and plan_for(one, GREEDY, None).memory.context == one.spec.context_length
    assert plan_for(opened(ram=2**33, context=100), GREEDY, None).memory.context == 100
    with pytest.raises(MoecliError, match="tokens and the context 2"):
        plan_for(opened(ram=2**33, context=2), GREEDY, "The sea was calm and the wind came from the north.")


def test_the_user_is_heard_before_the_vendor() -> None:
    vendor = GenerationDefaults(temperature=0.3, top_k=7)
    assert SamplingOptions(top_k=2).resolve(vendor) == Sampling(0.3, 2, 1.0, 0.0, 1.0)
    assert SamplingOptions().resolve(GenerationDefaults(do_sample=False)).temperature == 0
    assert SamplingOptions().resolve(GenerationDefaults()).temperature == 0.7


def test_a_recorded_session_says_the_same_and_keeps_a_prompt_for_each_turn() -> None:
    one = opened(ram=2**33)
    loaded = one.load(one.plan(64), silent)
    plain = ChatSession(loaded, GREEDY)
    recorded = RecordedSession(one.load(one.plan(64), silent), GREEDY, new_builders(one.name, one.spec))
    assert recorded.traces() == {}
    for text in ("The sea", " and then"):
        assert list(plain.ask(text, Answer())) == list(recorded.ask(text, Answer()))
    trace = recorded.traces()[""]
    assert sorted(set(trace.prompt.tolist())) == [0, 1]
    assert trace.dtype == loaded.dtype
