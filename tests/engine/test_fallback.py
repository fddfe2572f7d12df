"""A device whose memory runs out, a second arena in its role: the answer is the same, and what is said of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import moecli
from moecli.engine import fallback
from moecli.engine.answer import Answer
from moecli.engine.chat import ChatSession, GenerationConfig, RecordedSession
from moecli.engine.device import ran_out
from moecli.engine.generate import Session, Timing
from moecli.engine.load import open_model
from moecli.engine.loaded import LoadedModel, LoadOptions, OpenedModel, open_for_run
from moecli.engine.recorder import new_builders
from moecli.engine.sampling import Sampler, Sampling
from moecli.errors import NotEnoughMemory
from moecli.experts import gpu_offloaded, rates
from moecli.experts.arena import CPU, Arena
from moecli.experts.gpu_offloaded import GpuOffloadedExperts
from moecli.kernels.blocking import STAGED
from moecli.library.resolve import Kind, ModelRef
from moecli.planning.placement import Plan
from tests.support.checkpoints import make, prompt, write
from tests.support.stores import packed, split_plan

TINY = Path(moecli.__file__).parent / "tiny"
GREEDY = GenerationConfig(Sampling(), 0, max_tokens=5, raw=True)
FULL = "CUDA out of memory. Tried to allocate 20.00 MiB."


@pytest.fixture(autouse=True)
def timed_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an expert is computed changes no bit."""
    monkeypatch.setattr(rates, "_TRIAL_S", 0.0)


def opened(folder: Path = TINY, **options: Any) -> OpenedModel:
    """With a device of 4 GiB, which is this machine's own memory."""
    one = open_for_run(ModelRef("./tiny", "tiny", Kind.FOLDER, folder), LoadOptions(threads=1, ram=2**33))
    return replace(one, vram=2**32, options=replace(one.options, **options))


def plan_of(one: OpenedModel, on_device: int, in_ram: int | None = None) -> Plan:
    plan = split_plan(one.spec, one.model.dtypes[0], on_device, in_ram, 64)
    assert plan.device.experts == on_device and plan.device.dense
    return plan


def device_with(monkeypatch: pytest.MonkeyPatch, slots: int) -> None:
    """The device's arena holds no more slots than that; what is copied to it lies in the other one."""

    def arena(count: int, size: int, device: torch.device = CPU, copied_to: torch.device | None = None) -> Arena:
        if copied_to is None and count > slots:
            raise torch.OutOfMemoryError(FULL)
        return Arena(count, size)

    monkeypatch.setattr(gpu_offloaded, "Arena", arena)


def failing_at(monkeypatch: pytest.MonkeyPatch, *layers: int) -> None:
    """So many layers into its work the device runs out of memory, once for each number."""
    real, passed = GpuOffloadedExperts.iter_ready, iter(range(1, 10**6))

    def iter_ready(self: GpuOffloadedExperts, *asked: Any) -> Iterator[Any]:
        if next(passed) in layers:
            raise torch.OutOfMemoryError(FULL)
        return real(self, *asked)

    monkeypatch.setattr(GpuOffloadedExperts, "iter_ready", iter_ready)


def said(loaded: LoadedModel, warn: Callable[[str], None], *texts: str) -> tuple[list[list[int]], LoadedModel]:
    session = ChatSession(loaded, GREEDY, warn)
    ids = []
    for text in texts:
        answer = Answer()
        assert "".join(session.ask(text, answer)) == answer.text
        ids.append(answer.token_ids)
    return ids, session.loaded


def silence(text: str) -> None:
    pytest.fail(f"a warning: {text}")


def test_while_it_is_loaded_there_are_fewer_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    one, warnings = opened(), list[str]()
    expected, _ = said(one.load(plan_of(one, 40), lambda *_: None), silence, "The sea")
    device_with(monkeypatch, STAGED + 13)
    found = fallback.load(one, plan_of(one, 40), warn=warnings.append)
    assert found.plan.device.experts == 10 and found.plan.ram.experts == 46
    assert warnings == [
        "cpu ran out of memory: it goes on with 20 experts there instead of 40",
        "cpu ran out of memory: it goes on with 10 experts there instead of 20",
    ]
    assert said(found, silence, "The sea")[0] == expected


def test_a_device_that_holds_nothing_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    one, warnings = opened(), list[str]()
    device_with(monkeypatch, 0)
    found = fallback.load(one, plan_of(one, 1), warn=warnings.append)
    assert not found.plan.device.dense and found.plan.fits and found.rates is None
    assert [each.partition(": ")[2] for each in warnings] == [
        "it goes on with 0 experts there instead of 1",
        "the processor goes on without it",
    ]
    named = opened(device="cuda")
    with pytest.raises(NotEnoughMemory, match="cpu ran out of memory: 'tiny' in bf16") as refused:
        fallback.load(named, plan_of(named, 1), warn=warnings.append)
    assert refused.value.exit_code == 1 and "--vram" in str(refused.value.hint)
    assert len(warnings) == 3


@pytest.mark.parametrize("layer", [1, 7, 8, 30])
def test_an_answer_goes_on_with_the_same_tokens(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the prompt's first and last layer, with the first token and a later one; and a second turn after."""
    one, texts = opened(), ("The sea was calm", " and then")
    expected, _ = said(one.load(plan_of(one, 20), lambda *_: None), silence, *texts)
    before, warnings = one.load(plan_of(one, 20), lambda *_: None), list[str]()
    experts = weakref.ref(before.decoder.experts)
    failing_at(monkeypatch, layer)
    found, after = said(before, warnings.append, *texts)
    assert found == expected and len(warnings) == 1
    assert after.plan.device.experts == 10 and after.decoder.experts is not None
    assert before.decoder.is_released and not before.cache.layers  # whoever holds it holds nothing
    assert experts() is None  # its arenas are gone


def test_it_may_run_out_again_while_the_text_is_read_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    one, warnings = opened(), list[str]()
    expected, _ = said(one.load(plan_of(one, 2), lambda *_: None), silence, "The sea was calm")
    failing_at(monkeypatch, 30, 31, 33)
    found, after = said(one.load(plan_of(one, 2), lambda *_: None), warnings.append, "The sea was calm")
    assert found == expected and len(warnings) == 3 and not after.plan.device.dense


def test_what_is_recorded_is_what_was_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one = opened()

    def trace(warn: Callable[[str], None]) -> Any:
        loaded = one.load(plan_of(one, 20), lambda *_: None)
        session = RecordedSession(loaded, GREEDY, new_builders(one.name, one.spec), warn)
        list(session.ask("The sea", Answer()))
        return session.traces()[""]

    expected, warnings = trace(silence), list[str]()
    failing_at(monkeypatch, 17)
    found = trace(warnings.append)
    assert len(warnings) == 1 and found.ids.tolist() == expected.ids.tolist()
    for layer, other in zip(found.layers, expected.layers, strict=True):
        assert layer.chosen.tolist() == other.chosen.tolist()


def test_where_nothing_less_is_possible_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of which this RAM does not even hold the dense weights without the device."""
    one = opened()
    plan = plan_of(one, 20)
    loaded = replace(one.load(plan, lambda *_: None), plan=replace(plan, ram_budget=2**20))
    with pytest.raises(NotEnoughMemory, match="ran out of memory"):
        fallback.reload(loaded, silence)
    assert loaded.decoder.experts is not None and loaded.cache.layers


def test_a_conversation_survives_a_turn_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device was named, and had no memory for less of the model either, until other programs left it."""
    one = opened(device="cuda")
    expected, _ = said(one.load(plan_of(one, 4), lambda *_: None), silence, "The sea was calm")
    session = ChatSession(one.load(plan_of(one, 4), lambda *_: None), GREEDY, [].append)
    with monkeypatch.context() as patched, pytest.raises(NotEnoughMemory, match="ran out of memory"):
        failing_at(patched, 10)
        device_with(patched, 0)
        list(session.ask("The sea was calm", Answer()))
    answer = Answer()
    list(session.ask("The sea was calm", answer))
    assert [answer.token_ids] == expected and session.loaded.plan.device.experts == 4


def test_a_store_streams_what_has_no_place_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, warnings = opened(packed(TINY, tmp_path / "store").folder), list[str]()
    plan = plan_of(one, 20, 20)
    expected, _ = said(one.load(plan, lambda *_: None), silence, "The sea")
    failing_at(monkeypatch, 10)
    found, after = said(one.load(plan, lambda *_: None), warnings.append, "The sea")
    assert found == expected and len(warnings) == 1
    assert (after.plan.device.experts, after.plan.ram.experts, after.plan.disk.experts) == (10, 20, 26)


@pytest.mark.slow
def test_an_encoder_reads_its_prompt_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(write(make("switch_transformers"), tmp_path))
    plan = split_plan(model.spec, "fp32", 4)

    def text(fall_back: bool) -> list[int]:
        decoder = model.decoder(plan)

        def again() -> tuple[Any, Any]:
            other = model.decoder(plan)
            return other, other.new_cache(64, 64)

        running = Session(decoder, decoder.new_cache(64, 64), fall_back=again if fall_back else None)
        return list(running.generate(prompt(20), Sampler(Sampling(), 0), 6, Timing()))

    expected = text(fall_back=False)
    for layer in (1, 3, 9):
        with monkeypatch.context() as patched:
            failing_at(patched, layer)
            assert text(fall_back=True) == expected
        with monkeypatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
            failing_at(patched, layer)
            text(fall_back=False)


def test_other_errors_are_no_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    one = opened()
    monkeypatch.setattr(gpu_offloaded, "Arena", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        fallback.load(one, plan_of(one, 20), warn=silence)


@pytest.mark.parametrize(
    ("message", "full"),
    [
        ("CUDA error: out of memory", True), ("Triton Error [CUDA]: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: an illegal memory access was encountered", False), ("expected scalar type Float", False),
    ],
)  # fmt: skip
def test_libraries_say_in_words_that_memory_has_run_out(message: str, full: bool) -> None:
    assert ran_out(RuntimeError(message)) == full
    assert ran_out(torch.OutOfMemoryError(""))
