"""How an answer ends, and what is known of it until then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import moecli
from moecli.engine.answer import Answer, Request, pieces
from moecli.engine.generate import Timing
from moecli.engine.sampling import Sampler, Sampling
from moecli.text.tokenizer import Tokenizer

TEXT = "The sea is wide, and the sky above it is wider still."


@dataclass
class Dictated:
    """A session that says what it is told; at `interrupted` somebody presses Ctrl-C."""

    ids: Sequence[int]
    interrupted: int = -1
    asked: int = 0

    def generate(
        self, prompt: Sequence[int], sampler: Sampler, limit: int, timing: Timing, observer: Any, watch: Any, look: Any
    ) -> Iterator[int]:
        for number, token in enumerate(self.ids[:limit]):
            if number == self.interrupted:
                raise KeyboardInterrupt
            self.asked += 1
            yield token


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(Path(moecli.__file__).parent / "tiny")


@pytest.fixture(scope="module")
def ids(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(TEXT, special=False)


def request(limit: int = 100, **more: Any) -> Request:
    return Request([1], Sampling(), 0, limit, **more)


def test_until_it_ends_an_answer_counts_as_interrupted(tokenizer, ids) -> None:
    answer = Answer()
    assert answer.finish_reason == "interrupt"
    said = pieces(Dictated(ids), tokenizer, request(), answer)
    first = next(said)
    assert (answer.text, answer.finish_reason) == (first, "interrupt")
    assert answer.token_ids == ids[: len(answer.token_ids)]


@pytest.mark.parametrize("at", [0, 1, 5])
def test_ctrl_c_keeps_what_was_said(at, tokenizer, ids) -> None:
    answer, text = Answer(), ""
    with pytest.raises(KeyboardInterrupt):
        for piece in pieces(Dictated(ids, at), tokenizer, request(), answer):
            text += piece
    assert answer.finish_reason == "interrupt"
    assert answer.token_ids == ids[:at]
    assert answer.text == text and TEXT.startswith(text.strip()) and bool(text) == (at > 0)


def test_ctrl_c_in_whoever_prints_is_an_interruption_too(tokenizer, ids) -> None:
    answer = Answer()
    said = pieces(Dictated(ids), tokenizer, request(), answer)
    next(said)
    with pytest.raises(KeyboardInterrupt):
        said.throw(KeyboardInterrupt)
    assert answer.finish_reason == "interrupt" and answer.token_ids


@pytest.mark.parametrize("limit", [1, 4, 1000])
def test_at_the_limit_it_ends_by_length(limit, tokenizer, ids) -> None:
    answer = Answer()
    text = "".join(pieces(Dictated(ids), tokenizer, request(limit), answer))
    assert answer.finish_reason == "length"
    assert answer.token_ids == ids[:limit] and answer.text == text
    assert text.strip() == TEXT if limit == 1000 else TEXT.startswith(text.strip())


@pytest.mark.parametrize("before", [0, 3])
def test_an_end_token_ends_it_and_is_no_part_of_it(before, tokenizer, ids) -> None:
    end = max(ids) + 1
    session, answer = Dictated([*ids[:before], end, *ids]), Answer()
    text = "".join(pieces(session, tokenizer, request(end_ids=frozenset({end, end + 1})), answer))
    assert answer.finish_reason == "stop" and session.asked == before + 1
    assert answer.token_ids == ids[:before] and answer.text == text and TEXT.startswith(text.strip())


def test_an_end_token_at_the_limit_is_a_stop(tokenizer, ids) -> None:
    answer = Answer()
    list(pieces(Dictated(ids), tokenizer, request(4, end_ids=frozenset({ids[3]})), answer))
    assert answer.finish_reason == "stop" and answer.token_ids == ids[:3]


@pytest.mark.parametrize("stop", ["sky", "ky abo", " wider", "still.", "The"])
def test_a_stop_text_ends_it_and_is_not_printed(stop, tokenizer, ids) -> None:
    session, answer = Dictated(ids), Answer()
    text = "".join(pieces(session, tokenizer, request(stops=["nowhere", stop]), answer))
    assert answer.finish_reason == "stop"
    assert text == answer.text == tokenizer.decode(ids).partition(stop)[0]
    assert len(answer.token_ids) == session.asked
    assert (session.asked == len(ids)) == (stop == "still.")


def test_what_only_begins_like_a_stop_text_is_said_at_the_end(tokenizer, ids) -> None:
    answer = Answer()
    text = "".join(pieces(Dictated(ids), tokenizer, request(stops=["still. And"]), answer))
    assert text == answer.text and text.strip() == TEXT and answer.finish_reason == "length"
