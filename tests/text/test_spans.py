"""Answers of models that fill spans: what is printed of them as they come, and the text they complete."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecli.text.spans import Span, SpanStream, filled, sentinels, spans, with_gaps
from moecli.text.tokenizer import Tokenizer
from tests.support.toy_tokenizers import byte_level, with_sentinels

PROMPT = "The <extra_id_0> jumps over <extra_id_1> dog."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(with_sentinels(97), {"eos_token": "</s>"}, None, keeps_eos=True)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, special=False)


def streamed(tokenizer: Tokenizer, prompt: str, answer: list[int], stops: tuple[str, ...] = ()) -> str:
    stream = SpanStream(tokenizer, ids(tokenizer, prompt), stops)
    pieces = []
    for token in answer:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return "".join([*pieces, stream.finish()])


def test_sentinels_are_known_by_their_names(tokenizer: Tokenizer) -> None:
    names = sentinels(tokenizer)
    assert list(names.values()) == [f"<extra_id_{number}>" for number in range(len(names))] and len(names) > 2
    assert sentinels(Tokenizer(byte_level(), {}, None, keeps_eos=False)) == {}


def test_each_span_is_on_a_line_behind_its_sentinel(tokenizer: Tokenizer) -> None:
    answer = ids(tokenizer, "<extra_id_0> quick brown fox<extra_id_1> the lazy<extra_id_2> and more")
    assert streamed(tokenizer, PROMPT, answer) == "<extra_id_0> quick brown fox\n<extra_id_1> the lazy"
    found = spans(tokenizer, PROMPT, answer)
    assert found == [Span("<extra_id_0>", "quick brown fox"), Span("<extra_id_1>", "the lazy")]
    assert filled(PROMPT, found) == "The quick brown fox jumps over the lazy dog."


def test_an_answer_may_lack_spans_or_begin_with_text(tokenizer: Tokenizer) -> None:
    answer = ids(tokenizer, "hello<extra_id_1> the lazy")
    assert streamed(tokenizer, PROMPT, answer) == "hello\n<extra_id_1> the lazy"
    found = spans(tokenizer, PROMPT, answer)
    assert found == [Span("<extra_id_1>", "the lazy")]
    assert filled(PROMPT, found) == "The <extra_id_0> jumps over the lazy dog."
    assert streamed(tokenizer, PROMPT, []) == "" and spans(tokenizer, PROMPT, []) == []


def test_without_gaps_everything_is_printed(tokenizer: Tokenizer) -> None:
    answer = ids(tokenizer, "<extra_id_0> a cat<extra_id_1> the mat")
    assert streamed(tokenizer, "once upon a time", answer) == "<extra_id_0> a cat\n<extra_id_1> the mat"
    assert [span.text for span in spans(tokenizer, "once", answer)] == ["a cat", "the mat"]
    assert streamed(tokenizer, "once", ids(tokenizer, "upon a time")) == "upon a time"


@given(st.integers(0, 300), st.integers(0, 20), st.integers())
def test_gaps_and_what_is_missing_make_up_the_text(length: int, names: int, seed: int) -> None:
    ids, sentinels = list(range(100, 100 + length)), list(range(names))
    read, written = with_gaps(ids, sentinels, Random(seed))
    if not written:
        assert read == ids and (length < 2 or names < 2)
        return
    assert written[0] == 0 and written[-1] == sum(token < names for token in read) < names
    heads = [place for place, token in enumerate(written) if token < names]
    missing = {written[start]: written[start + 1 : end] for start, end in pairwise(heads)}
    again = [each for token in read for each in (missing[token] if token < names else [token])]
    assert again == ids
    assert abs(sum(map(len, missing.values())) - 0.15 * length) <= 1


def test_a_stop_text_ends_it(tokenizer: Tokenizer) -> None:
    answer = ids(tokenizer, "<extra_id_0> quick brown fox<extra_id_1> the lazy")
    assert streamed(tokenizer, PROMPT, answer, ("brown",)) == "<extra_id_0> quick "
