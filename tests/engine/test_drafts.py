"""Drafts: what is looked up, when it pays, and that no token depends on it."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moecli.engine.decoder import Decoder
from moecli.engine.drafts import PromptLookup
from moecli.engine.generate import Session, Timing
from moecli.engine.recorder import Recorder, new_builders
from moecli.engine.sampling import Sampler, Sampling
from tests.support.checkpoints import make, prompt, write
from tests.support.running import load

MODELS = {
    "mixtral": ("mixtral", {}),
    "window": ("mixtral", {"sliding_window": 9}),
    "latent": ("deepseek_v2", {"moe_intermediate_size": 32, "intermediate_size": 64}),
}


def generated(
    decoder: Decoder, ids: list[int], count: int, sampling: Sampling, lookup: bool, watched: bool = False
) -> tuple[list[int], Timing]:
    timing = Timing()
    session = Session(decoder, decoder.new_cache(len(ids) + count, 64), lookup=lookup)
    observer = Recorder(decoder.spec, new_builders("model", decoder.spec)[""]) if watched else None
    return list(session.generate(ids, Sampler(sampling, 3), count, timing, observer)), timing


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.6, top_k=3), Sampling(repeat_penalty=1.1)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_drafts_change_no_token(name: str, sampling: Sampling, tmp_path: Path) -> None:
    """Of texts that repeat themselves and of one that does not; the cache is as if nothing had been guessed."""
    family, changes = MODELS[name]
    decoder = load(write(make(family, **changes), tmp_path), "q8")
    if not decoder.can_draft:
        pytest.skip("several tokens are no step here")
    for ids in (prompt(40), list(islice(cycle(prompt(5)), 60)), prompt(11) * 4):
        alone, undrafted = generated(decoder, ids, 60, sampling, lookup=False)
        assert undrafted.drafted == undrafted.drafted_right == 0
        drafted, timing = generated(decoder, ids, 60, sampling, lookup=True)
        assert drafted == alone and timing.steps == 59
        assert timing.drafted_right <= timing.drafted


def test_a_text_that_repeats_itself_takes_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("mixtral")
    for name, weight in model.named_parameters():
        if "o_proj" in name or "down_proj" in name:  # each token alone says what follows: a circle, soon
            torch.nn.init.zeros_(weight)
    decoder = load(write(model, tmp_path), "q8")
    if not decoder.can_draft:
        pytest.skip("several tokens are no step here")
    ids = prompt(20)
    plain, _ = generated(decoder, ids, 80, Sampling(), lookup=False)
    steps, forward = [], decoder.forward

    def counted(ids: torch.Tensor, *rest: object, **more: object) -> torch.Tensor:
        steps.append(len(ids))
        return forward(ids, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(decoder, "forward", counted)
    monkeypatch.setattr(PromptLookup, "measured", lambda self, tokens, seconds: setattr(self, "_single", 1.0))
    found, timing = generated(decoder, ids, 80, Sampling(), lookup=True)
    assert found == plain and 1 + timing.steps == 80
    assert sum(steps[1:]) == timing.steps + timing.drafted - timing.drafted_right
    assert len(steps) - 1 == timing.steps - timing.drafted_right < 40
    assert generated(decoder, ids, 80, Sampling(), lookup=True, watched=True)[1].drafted == 0  # whose routing is seen


def guesses(text: list[int], most: int = 7, single: float = 1.0, more: float = 0.01) -> list[int]:
    lookup = PromptLookup(text)
    lookup.measured(1, single)
    lookup.measured(2, single + more)
    return lookup.propose(most)


def test_what_followed_the_last_three_tokens_is_guessed() -> None:
    text = [1, 2, 3, 4, 5, 6, 9]
    assert guesses([*text, *text, 1, 2, 3], most=3) == [4, 5, 6]
    assert guesses([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3, 8, 1, 2, 3], most=1) == [8]  # the last time counts
    assert guesses([1, 2, 3, 4, 2, 3]) == guesses([1, 2]) == guesses([]) == []


def test_a_period_shorter_than_the_draft_goes_on() -> None:
    lookup = PromptLookup([1, 2] * 20)
    lookup.measured(1, 1.0)
    lookup.measured(3, 1.002)
    for token in [1, 2] * 20:
        lookup.add(token)
    assert lookup.propose(7) == [1, 2, 1, 2, 1, 2, 1]
    assert lookup.propose(3) == [1, 2, 1] and lookup.propose(0) == []


@pytest.mark.parametrize(("more", "length"), [(0.0, 7), (0.2, 7), (0.9, 6), (0.99, 1), (1.0, 0), (2.0, 0)])
def test_a_draft_is_as_long_as_pays(more: float, length: int) -> None:
    """After a hundred right guesses in a row, of the doubt at the start a trace is left."""
    lookup = PromptLookup([1, 2] * 3)
    for token in [1, 2] * 50:
        lookup.add(token)
    lookup.measured(1, 1.0)
    lookup.measured(2, 1.0 + more)
    assert lookup.chance == pytest.approx(0.996, abs=0.002)
    speeds = [sum(lookup.chance**n for n in range(k + 1)) / (1 + k * more) for k in range(8)]
    assert len(lookup.propose(7)) == speeds.index(max(speeds)) == length


def test_nothing_is_drafted_while_guesses_fail() -> None:
    lookup = PromptLookup([1, 2, 3] * 2)
    lookup.measured(1, 1.0)
    for token in range(10, 40):
        lookup.add(token)
        for known in (1, 2, 3):
            lookup.add(known)  # what follows is guessed, and never comes
    assert lookup.chance < 0.1 and lookup.propose(7) == []


def test_a_cost_that_forbids_drafts_is_measured_again() -> None:
    lookup = PromptLookup([1, 2] * 3)
    for token in [1, 2] * 50:
        lookup.add(token)
    lookup.measured(1, 1.0)
    lookup.measured(2, 2.5)  # another program took the processor
    empty = 0
    while not lookup.propose(7):
        empty += 1
    assert 10 < empty < 40


@settings(max_examples=60)
@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 7))
def test_a_draft_is_never_longer_than_asked_for(text: list[int], most: int) -> None:
    assert len(guesses(text, most)) <= most
