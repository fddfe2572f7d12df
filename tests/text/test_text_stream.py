"""Streaming: the pieces are the text, whole characters only, and stop strings stay out of it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecli.text.stream import TextStream
from moecli.text.tokenizer import Tokenizer

TEXT = st.text(max_size=40) | st.text(alphabet="ab \n🎉é世\ufffd▁'", max_size=40)
FAST = settings(max_examples=150, deadline=None, database=None)


def streamed(
    tokenizer: Tokenizer, ids: Sequence[int], stops: Sequence[str] = (), prompt_ids: Sequence[int] = ()
) -> list[str]:
    stream = TextStream(tokenizer, stops, prompt_ids)
    pieces = [stream.push(number) for number in ids]
    pieces.append(stream.finish())
    assert stream.text == "".join(pieces)
    return pieces


@pytest.mark.parametrize("name", ["bytes", "pieces"])
def test_any_text_comes_back(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(f"{name}_tokenizer")

    @FAST
    @given(text=TEXT)
    def check(text: str) -> None:
        ids = tokenizer.encode(text, special=False)
        pieces = streamed(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)
        if "\ufffd" not in text:
            assert "\ufffd" not in "".join(pieces)

    check()


@pytest.mark.parametrize("name", ["bytes", "pieces"])
def test_an_answer_continues_its_prompt(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(f"{name}_tokenizer")

    @FAST
    @given(prompt=TEXT, text=TEXT)
    def check(prompt: str, text: str) -> None:
        before, ids = tokenizer.encode(prompt), tokenizer.encode(text, special=False)
        whole, known = tokenizer.decode(before + ids), tokenizer.decode(before)
        assert "".join(streamed(tokenizer, ids, prompt_ids=before)) == whole[len(known) :]

    check()


def test_any_bytes_come_back(bytes_tokenizer: Tokenizer) -> None:
    """Also what no text encodes to: broken UTF-8 and special tokens in between."""

    @FAST
    @given(ids=st.lists(st.integers(0, bytes_tokenizer.size + 5), max_size=80))
    def check(ids: list[int]) -> None:
        assert "".join(streamed(bytes_tokenizer, ids)) == bytes_tokenizer.decode(ids)

    check()


def test_any_pieces_without_broken_bytes_come_back(pieces_tokenizer: Tokenizer) -> None:
    whole = [number for number in range(pieces_tokenizer.size) if not 3 <= number < 3 + 256]

    @FAST
    @given(ids=st.lists(st.sampled_from(whole), max_size=40))
    def check(ids: list[int]) -> None:
        assert "".join(streamed(pieces_tokenizer, ids)) == pieces_tokenizer.decode(ids)

    check()


def test_broken_bytes_among_pieces_cost_no_good_character(pieces_tokenizer: Tokenizer) -> None:
    """The documented difference: the whole-text decoder would take back the euro sign as well."""
    ids = [3 + byte for byte in "€".encode()] + [3 + 0xFF] + pieces_tokenizer.encode("cat", special=False)
    text = "".join(streamed(pieces_tokenizer, ids))
    assert text.startswith("€\ufffd")
    assert text.endswith("cat")
    assert pieces_tokenizer.decode(ids).count("\ufffd") == 4


def test_a_character_of_many_tokens_is_printed_at_once(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🎉b", special=False)
    pieces = streamed(tokenizer, ids)
    assert len(ids) > 4, "the toy has no token for the emoji, else this tests nothing"
    assert "🎉" in pieces
    assert all("\ufffd" not in piece for piece in pieces)


def test_text_before_half_a_character_does_not_wait(bytes_tokenizer: Tokenizer) -> None:
    stream = TextStream(bytes_tokenizer)
    first, second = bytes_tokenizer.encode("é", special=False)
    assert stream.push(bytes_tokenizer.encode("x", special=False)[0]) == "x"
    assert stream.push(first) == ""
    assert stream.push(second) == "é"


def test_half_a_character_at_the_end_shows_as_a_replacement(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ok 🎉", special=False)[:-1]
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert set(pieces[-1]) == {"\ufffd"}


def test_the_first_space_goes_and_the_others_stay(pieces_tokenizer: Tokenizer) -> None:
    ids = pieces_tokenizer.encode("the cat sat", special=False)
    assert "".join(streamed(pieces_tokenizer, ids)) == "the cat sat"
    prompt = pieces_tokenizer.encode("once upon")
    assert "".join(streamed(pieces_tokenizer, ids, prompt_ids=prompt)) == " the cat sat"
    only_bos = pieces_tokenizer.encode("")
    assert "".join(streamed(pieces_tokenizer, ids, prompt_ids=only_bos)) == "the cat sat"


def test_special_tokens_print_nothing(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the cat", special=False)
    assert tokenizer.eos_id is not None
    with_eos = [number for part in ids for number in (tokenizer.eos_id, part)]
    assert "".join(streamed(tokenizer, with_eos)) == "the cat"


def test_a_special_token_inside_a_character_breaks_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_id is not None
    ids = [number for part in tokenizer.encode("a🎉", special=False) for number in (part, tokenizer.eos_id)]
    assert "".join(streamed(tokenizer, ids)) == "a🎉"


def test_a_long_run_of_broken_bytes_comes_back(bytes_tokenizer: Tokenizer) -> None:
    draw = random.Random(0)
    letters = sorted(bytes_tokenizer.encode("🎉é世", special=False))
    for _ in range(50):
        ids = draw.choices(letters, k=200)
        assert "".join(streamed(bytes_tokenizer, ids)) == bytes_tokenizer.decode(ids)


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The plainest meaning of stop strings: read letter by letter until one is complete."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bytes", "pieces"])
def test_stops_mean_the_same_however_the_text_is_cut_into_tokens(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(f"{name}_tokenizer")
    alphabet = "aab é🎉"

    @FAST
    @given(
        text=st.text(alphabet=alphabet + "the cat", max_size=30),
        stops=st.lists(st.text(alphabet=alphabet, max_size=4), max_size=3),
        apart=st.booleans(),
    )
    def check(text: str, stops: list[str], apart: bool) -> None:
        parts = list(text) if apart else [text]
        ids = [number for part in parts for number in tokenizer.encode(part, special=False)]
        whole = tokenizer.decode(ids)
        expected = cut_at(whole, stops)
        stream = TextStream(tokenizer, stops)
        printed = ""
        for number in ids:
            printed += stream.push(number)
            assert expected.startswith(printed), "nothing is printed that must be taken back"
        printed += stream.finish()
        assert printed == stream.text == expected
        assert stream.stopped == (expected != whole)

    check()


def test_a_stop_inside_one_token_and_across_tokens(bytes_tokenizer: Tokenizer) -> None:
    ids = bytes_tokenizer.encode("hello User: the quick", special=False)
    for stops, text in ([["User:"], "hello "], [["ck"], "hello User: the qui"], [["o Us"], "hell"]):
        stream = TextStream(bytes_tokenizer, stops)
        pieces = [stream.push(number) for number in ids]
        assert "".join(pieces) == text
        assert stream.stopped
        assert stream.finish() == ""


def test_what_only_began_like_a_stop_is_printed(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the end of STO", special=False)
    stream = TextStream(tokenizer, ["STOP", ""])
    printed = "".join(stream.push(number) for number in ids)
    assert printed == "the end of "
    assert stream.finish() == "STO"
    assert not stream.stopped


def test_a_stop_that_only_the_last_flush_completes(bytes_tokenizer: Tokenizer) -> None:
    half = bytes_tokenizer.encode("é", special=False)[0]
    stream = TextStream(bytes_tokenizer, ["\ufffd"])
    stream.push(half)
    assert stream.finish() == ""
    assert stream.stopped


def test_the_cost_of_a_token_does_not_grow(tokenizer: Tokenizer) -> None:
    """Decoding the whole text for every token would touch 10**8 tokens here, for broken bytes as well."""
    broken = tokenizer.encode("🎉", special=False)[1]
    started = time.monotonic()
    stream = TextStream(tokenizer, ["\nUser:"])
    for number in [*tokenizer.encode("the cat sat. " * 1500, special=False), *[broken] * 10_000]:
        stream.push(number)
    assert time.monotonic() - started < 15
    assert len(stream._window) < 50
