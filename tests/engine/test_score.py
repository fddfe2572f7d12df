"""Scores of given answers, against a plain pass over prompt and answer."""

from __future__ import annotations

import math

import pytest
import torch

from moecli.engine.chat import GenerationConfig
from moecli.engine.loaded import LoadedModel, LoadOptions, OpenedModel, open_for_run
from moecli.engine.sampling import Sampling, ScoringSampler, TokenScore, score
from moecli.engine.score import encode_labels, plan_for, score_labels, shares
from moecli.errors import MoecliError, UsageError
from moecli.library.resolve import built_in
from moecli.store.progress import silent

CONFIG = GenerationConfig(Sampling(), 0)
NAMES = ("blue", "made of paper", "a ship that sails far away over the sea")


@pytest.fixture(scope="module")
def opened() -> OpenedModel:
    return open_for_run(built_in(), LoadOptions(threads=1))


@pytest.fixture(scope="module")
def loaded(opened: OpenedModel) -> LoadedModel:
    return opened.load(plan_for(opened, encode_labels(opened, CONFIG, "The sea is", NAMES)), silent)


def test_each_answer_is_scored_as_a_text_of_its_own(opened: OpenedModel, loaded: LoadedModel) -> None:
    labels = encode_labels(opened, CONFIG, "The sea is", NAMES)
    for found, ids in zip(score_labels(loaded, labels), labels.ids, strict=True):
        text = [*labels.prompt, *ids]
        assert text == opened.tokenizer.encode(f"The sea is {found.name}")
        states = loaded.decoder.forward(torch.tensor(text), loaded.decoder.new_cache(64, 64))
        rows = loaded.decoder.logits(states).log_softmax(-1)[len(labels.prompt) - 1 : -1]
        plain = [float(row[token]) for row, token in zip(rows, ids, strict=True)]
        assert found.logprobs == pytest.approx(plain, abs=0.2)  # bf16: a decode step rounds otherwise than a prompt
        assert found.logprob == math.fsum(found.logprobs) < 0


def test_scores_do_not_depend_on_the_other_answers(opened: OpenedModel, loaded: LoadedModel) -> None:
    all_ = score_labels(loaded, encode_labels(opened, CONFIG, "The sea is", NAMES))
    turned = score_labels(loaded, encode_labels(opened, CONFIG, "The sea is", NAMES[::-1]))
    assert all_ == turned[::-1]
    assert sum(shares(all_)) == pytest.approx(1) and shares(all_)[0] == max(shares(all_))


def test_answers_that_cannot_be_scored(opened: OpenedModel) -> None:
    with pytest.raises(UsageError, match="the label 'x x"):
        encode_labels(opened, CONFIG, "The sea is", ["x " * 4000])
    with pytest.raises(MoecliError, match=r"prompt and label are .* tokens and the context 1024"):
        plan_for(opened, encode_labels(opened, CONFIG, "The sea is " * 400, NAMES))


def test_a_score_is_the_models_own() -> None:
    logits, kept = torch.tensor([1.0, 3.0, 2.0]), list[TokenScore]()
    token = ScoringSampler(Sampling(temperature=1.0, top_k=1, repeat_penalty=9.0), 0, 2, kept).pick(logits, [1])
    expected = logits.log_softmax(0).tolist()
    assert kept == [score(logits, token, 2)] and token == 2
    assert kept[0].logprob == pytest.approx(expected[2])
    assert [each for each, _ in kept[0].top] == [1, 2] and kept[0].top[0][1] == pytest.approx(expected[1])
