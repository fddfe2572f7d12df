"""The steps of a generation, one by one: what is fed, told, timed and observed, and what is remembered of speeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import moecli
from moecli.engine import generate, limits
from moecli.engine.cache import Cache
from moecli.engine.chat import Conversation, GenerationConfig, plan_for
from moecli.engine.decoder import Decoder
from moecli.engine.generate import Session, Timing
from moecli.engine.load import open_model
from moecli.engine.loaded import LoadOptions, OpenedModel, open_for_run
from moecli.engine.sampling import Sampler, Sampling
from moecli.errors import MoecliError
from moecli.library.resolve import Kind, ModelRef
from moecli.planning import measured
from moecli.planning.placement import Tier, fit
from moecli.planning.speed import Bandwidths, Sources
from tests.support.running import load

TINY = Path(moecli.__file__).parent / "tiny"
MIB = 2**20


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return load(TINY, "bf16", 64)


class Script(Sampler):
    """Says what it is told, and notes what it saw."""

    def __init__(self, *ids: int) -> None:
        super().__init__(Sampling(), 0)
        self._ids, self.seen = list(ids), list[list[int]]()

    def pick(self, logits: torch.Tensor, seen: list[int]) -> int:  # type: ignore[override]
        assert logits.shape == (len(logits),) and logits.device.type == "cpu"
        self.seen.append(list(seen))
        return self._ids.pop(0)


class Notes:
    """Of what is fed, in the order in which it happens."""

    def __init__(self, decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fed: list[list[int]] = []
        self.watched: list[tuple[int, int]] = []
        self.flags: list[bool] = []
        forward = Decoder.forward

        def noted(self_: Decoder, ids: torch.Tensor, cache: Cache, observer=None, last_only=False, *rest, **more):
            assert last_only
            self.fed.append(ids.tolist())
            self.flags.append(observer is not None and observer.generated)
            return forward(self_, ids, cache, None, last_only, *rest, **more)

        monkeypatch.setattr(Decoder, "forward", noted)


def test_each_step_feeds_the_token_before(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    notes, script = Notes(decoder, monkeypatch), Script(7, 8, 9)
    observer, timing = SimpleNamespace(generated=None), Timing()
    session = Session(decoder, decoder.new_cache(64, 64))
    found = session.generate([1, 2, 3], script, 3, timing, observer, lambda *each: notes.watched.append(each))
    assert [next(found), next(found), next(found)] == [7, 8, 9] and next(found, None) is None
    assert notes.fed == [[1, 2, 3], [7], [8]] and notes.flags == [False, True, True]
    assert script.seen == [[1, 2, 3], [1, 2, 3, 7], [1, 2, 3, 7, 8]]
    assert session.held == [1, 2, 3, 7, 8] and notes.watched[-1][0] == notes.watched[-1][1]
    told = len(notes.watched)
    notes.fed.clear()
    # What is shared is not fed again; at least the last token is
    list(session.generate([1, 2, 3, 7, 5, 6], Script(4), 1, timing, None, lambda *each: None))
    assert (timing.prompt_tokens, timing.cached_tokens) == (6, 4) and notes.fed == [[5, 6]]
    list(session.generate([1, 2, 3, 7, 5, 6], Script(4), 1, timing))
    assert (timing.cached_tokens, notes.fed[-1]) == (5, [6]) and len(notes.watched) == told
    list(session.generate([9, 2], Script(4), 1, timing))
    assert (timing.cached_tokens, notes.fed[-1], session.held) == (0, [9, 2], [9, 2])


def test_a_torn_pass_is_fed_again_as_a_whole(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    session, timing = Session(decoder, decoder.new_cache(64, 64)), Timing()
    list(session.generate([1, 2, 3], Script(7, 8), 2, timing))
    monkeypatch.setattr(Decoder, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(session.generate([1, 2, 3, 7, 5], Script(7), 1, timing))
    monkeypatch.undo()
    list(session.generate([1, 2, 3, 7, 5], Script(7), 1, timing))
    assert timing.cached_tokens == 0 and session.held == [1, 2, 3, 7, 5]
    list(session.generate([1, 2, 3, 7, 5, 6], Script(7), 1, timing))
    assert timing.cached_tokens == 5


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_time_is_that_of_the_steps(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which each look takes a second more than the one before; the prompt is apart, the caller's is not."""
    looks, phases, begun = iter(range(100)), list[tuple[object, int, float]](), list[int]()
    clock = 0.0

    def perf_counter() -> float:
        nonlocal clock
        clock += next(looks)
        return clock

    profile = SimpleNamespace(prefill="prompt", decode="step", end_step=lambda *each: phases.append(each))
    monkeypatch.setattr(generate, "time", SimpleNamespace(perf_counter=perf_counter))
    other = Decoder.__new__(Decoder)
    other.__dict__.update(decoder.__dict__)
    other.profile, other.team = profile, SimpleNamespace(begin=lambda: begun.append(1))
    monkeypatch.setattr(Decoder, "forward", lambda *_, **__: torch.zeros(1, decoder.spec.hidden_size))
    timing = Timing()
    list(Session(other, decoder.new_cache(64, 64)).generate([1, 2, 3], Script(7, 8, 9), 3, timing))
    assert (timing.prefill_s, timing.decode_s, timing.steps) == (1.0, 3.0 + 5.0, 2)
    assert phases == [("prompt", 3, 1.0), ("step", 1, 3.0), ("step", 1, 5.0)] and begun == [1]
    assert (timing.prefill_rate, timing.decode_rate) == (3.0, 0.25)
    timing.cached_tokens = 1
    assert timing.prefill_rate == 2.0


def test_no_text_and_one_too_long_are_refused_in_words(decoder: Decoder) -> None:
    session = Session(decoder, decoder.new_cache(5, 5))
    with pytest.raises(MoecliError) as empty:
        list(session.generate([], Script(), 3, Timing()))
    assert (empty.value.message, empty.value.hint) == (
        "the prompt is empty", "a model without a start token needs at least one token"
    )  # fmt: skip
    with pytest.raises(MoecliError) as long:
        list(session.generate([1] * 6, Script(), 3, Timing()))
    assert (long.value.message, long.value.hint) == (
        "the prompt is 6 tokens and the context 5", "shorten it, or raise --ctx"
    )  # fmt: skip
    assert list(session.generate([1] * 4, Script(2, 3), 9, Timing())) == [2, 3]


# A chat's configuration


def opened(**options: object) -> OpenedModel:
    return open_for_run(ModelRef("./tiny", "tiny", Kind.FOLDER, TINY), LoadOptions(threads=1, ram=2**33, **options))


def test_what_a_configuration_leaves_out() -> None:
    config = GenerationConfig(Sampling(), 3)
    assert (config.max_tokens, config.stops, config.system, config.raw, config.seed) == (512, (), None, False, 3)


@pytest.mark.parametrize(
    ("asked", "trained", "text", "context"),
    [
        (None, 100, None, 100), (None, 20_000, None, 8192), (70, 100, None, 70), (200, 100, None, 200),
        (None, 100, "The sea", "prompt and answer"), (None, 12, "The sea", 12), (13, 100, "The sea", 13),
    ],
)  # fmt: skip
def test_how_long_a_context_is_planned(asked: int | None, trained: int, text: str | None, context: int | str) -> None:
    """That of the model, no longer than usual; as asked for; or what prompt and answer take."""
    one, planned = opened(context=asked), list[int]()
    spec = replace(one.spec, context_length=trained)
    fake = SimpleNamespace(
        options=one.options, spec=spec, model=SimpleNamespace(spec=spec), tokenizer=one.tokenizer, plan=planned.append
    )
    plan_for(fake, GenerationConfig(Sampling(), 0, max_tokens=40, raw=True), text)  # type: ignore[arg-type]
    prompt = len(one.tokenizer.encode("The sea"))
    assert planned == [prompt + 40 if isinstance(context, str) else context]


def test_a_prompt_that_is_longer_than_any_context() -> None:
    one = opened(context=2)
    with pytest.raises(MoecliError) as refused:
        plan_for(one, GenerationConfig(Sampling(), 0), "The sea and the sky")
    assert refused.value.hint == "shorten it, or raise --ctx beyond what the model was trained for"


def test_no_tokens_are_no_prompt() -> None:
    talk = Conversation(opened(), GenerationConfig(Sampling(), 0))
    talk._tokenizer = SimpleNamespace(encode=lambda text, special: [], chat_template=None)  # type: ignore[assignment]
    with pytest.raises(MoecliError, match="the prompt holds no tokens"):
        talk.prompt("")


def test_a_chat_is_planned_whatever_its_template_says() -> None:
    """Whoever asks will be told."""
    one, planned = opened(), list[int]()

    def refused(*_: object, **__: object) -> list[int]:
        raise MoecliError("a template that fails")

    tokenizer = SimpleNamespace(encode=refused, encode_chat=refused, chat_template=None)
    fake = SimpleNamespace(
        options=one.options, spec=one.spec, model=one.model, tokenizer=tokenizer, plan=planned.append
    )
    plan_for(fake, GenerationConfig(Sampling(), 0), None)  # type: ignore[arg-type]
    assert planned == [one.spec.context_length]
    with pytest.raises(MoecliError, match="a template that fails"):
        plan_for(fake, GenerationConfig(Sampling(), 0), "text")  # type: ignore[arg-type]


# What is remembered of this machine


@pytest.mark.parametrize(
    ("sample", "bursts", "kept", "disk"),
    [
        (256 * MIB, (1e9, 3e9, 2e9), {"ram": 7e9, "disk": 3e9}, 3e9),
        (255 * MIB, (1e9, None, None), {"ram": None, "disk": 1e9}, 1e9),
        (256 * MIB, (None, None, None), {"ram": 7e9, "disk": None}, 1.5e9),
        (4 * MIB, None, {"ram": None, "disk": None}, 1.5e9),
    ],
)  # fmt: skip
def test_only_what_was_measured_well_is_remembered(
    sample: int, bursts: tuple[float | None, ...] | None, kept: dict[str, float | None], disk: float, monkeypatch
) -> None:
    """Memory by a sample that no cache holds; a disk by its best burst, where experts are read from it."""
    spec, remembered, freed = open_model(TINY).spec, list[dict[str, float | None]](), list[int]()
    monkeypatch.setattr(limits, "read_bandwidth", lambda size: 7e9 if size == sample else 0)
    monkeypatch.setattr(measured, "remember", lambda **each: remembered.append(each))
    monkeypatch.setattr(limits, "_linear", lambda spec, dtype: (spec, dtype))
    monkeypatch.setattr(limits.settings, "return_freed_memory", lambda: freed.append(1))
    speeds = iter(bursts or ())
    model = SimpleNamespace(spec=spec, measure_disk=lambda dtype: next(speeds), unpacked=lambda dtype: None)
    plan = replace(fit(spec, "bf16", 64, 2**40), disk=Tier(experts=0 if bursts is None else 3))
    found = limits.measure_bandwidths(model, plan, sample)  # type: ignore[arg-type]
    sources = Sources("measured", "measured" if kept["disk"] else "typical")
    assert found == Bandwidths(ram=7e9, disk=disk, linear=(spec, "bf16"), sources=sources)  # type: ignore[arg-type]
    assert remembered == [kept] and freed == [1]
