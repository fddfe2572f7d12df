"""What others wrote, read within bounds: any bytes give an object or one explained refusal, at once."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecli.errors import CheckpointError, json_object

REFUSED = {
    "nothing": b"",
    "no JSON": b"{",
    "an array": b"[1]",
    "a number": b"1",
    "deep arrays": b'{"a":' + b"[" * 70 + b"]" * 70 + b"}",
    "very deep arrays": b"[" * 200_000,
    "deep objects": b'{"a":' * 70 + b"1" + b"}" * 70,
    "5,000 digits": b'{"a": ' + b"1" * 5000 + b"}",
    "300 digits": b'{"a": [-' + b"1" * 300 + b"]}",
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-8 of half a pair": b'{"a": "\xed\xa0\x80"}',
    "a cut UTF-16": '{"a": 1}'.encode("utf-16")[:-1],
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_believed_is_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError) as refused:
        json_object(content, CheckpointError)
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_encoding_of_json_is_read(encoding: str) -> None:
    assert json_object('{"é": "Ω"}'.encode(encoding), CheckpointError) == {"é": "Ω"}


def test_half_a_character_is_shown_as_none() -> None:
    found = json_object(b'{"\\udc80": ["\\ud83d\\ude00", "\\ud83d"]}', CheckpointError)
    assert found == {"?": ["\U0001f600", "?"]}


def test_numbers_beyond_float_are_left_to_their_readers() -> None:
    assert json_object('{"a": 1e400, "b": NaN}', CheckpointError)["a"] == float("inf")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(st.dictionaries(st.text(), values, max_size=4))
def test_honest_objects_are_read_as_they_are(document: dict[str, object]) -> None:
    assert json_object(json.dumps(document), CheckpointError) == document


@given(st.binary(max_size=60))
def test_no_bytes_give_another_exception(content: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        assert isinstance(json_object(content, CheckpointError), dict)
