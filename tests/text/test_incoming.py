"""Text from outside: marks, UTF-16, gzip, wrong bytes told by line, and lines that end where lines end."""

from __future__ import annotations

import gzip
import io
from functools import partial

import pytest

from moecli.errors import TextError
from moecli.text import incoming
from moecli.text.incoming import decode, lines, read, without_halves

TEXT = "Le café\r\n漢字 👩\u2028one line\x0c\x85\n"
_squeezed = partial(gzip.compress, mtime=0)  # the same bytes in every process that collects these tests


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        b"\xff\xfe" + TEXT.encode("utf-16-le"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        b"\xff\xfe\0\0" + TEXT.encode("utf-32-le"),
        b"\0\0\xfe\xff" + TEXT.encode("utf-32-be"),
        _squeezed(TEXT.encode()),
        _squeezed(b"\xff\xfe" + TEXT.encode("utf-16-le")),
        _squeezed(TEXT.encode()[:9]) + _squeezed(TEXT.encode()[9:]),
    ],
)
def test_what_is_understood(content: bytes) -> None:
    told: list[str] = []
    assert decode(content, "stdin", told.append) == TEXT and told == []


@pytest.mark.parametrize(
    ("content", "text", "note"),
    [
        (b"good\ncaf\xe9\n", "good\ncaf\ufffd\n", "p.txt is not UTF-8 in line 2: wrong bytes became U+FFFD"),
        (b"\xff\n" * 8, "\ufffd\n" * 8, "p.txt is not UTF-8 in lines 1, 2, 3, 4, 5 and 3 more"),
        (b"a\n\xed\xa0\x80", "a\n\ufffd\ufffd\ufffd", "in line 2"),  # half a pair
        (b"\xc0\xafa", "\ufffd\ufffda", "in line 1"),  # longer than it need be
        (b"\xff\xfeA\0\n\0B", "A\n\ufffd", "p.txt is not UTF-16 in line 2"),
        (b"\xef\xbb\xbfok\n\x80", "ok\n\ufffd", "in line 2"),
        (b"a\0b\n", "a\0b\n", "p.txt holds NUL in line 1"),
        ("hi\n".encode("utf-16-le"), "h\0i\0\n\0", "UTF-16 is known by its byte order mark"),
        (b"\xff\xfe", "", ""),
        (b"", "", ""),
    ],
)
def test_what_is_told(content: bytes, text: str, note: str) -> None:
    told: list[str] = []
    assert decode(content, "p.txt", told.append) == text
    assert note in "".join(told) and bool(told) == bool(note)


@pytest.mark.parametrize("content", [b"\x1f\x8b", _squeezed(b"x" * 99)[:-9], _squeezed(b"x")[:-1] + b"x"])
def test_damaged_gzip(content: bytes) -> None:
    with pytest.raises(TextError, match="stdin is damaged gzip"):
        decode(content, "stdin", print)


def test_too_much_is_refused_compressed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "_MOST", 2**20)
    assert len(read(io.BytesIO(bytes(2**20)), "p")) == 2**20
    with pytest.raises(TextError, match="p holds more than 1 MiB"):
        read(io.BytesIO(bytes(2**20 + 1)), "p")
    with pytest.raises(TextError, match="p holds more than 1 MiB"):
        decode(_squeezed(bytes(2**22)), "p", print)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a\nb", ["a", "b"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\rb\n\nc\n", ["a\rb", "", "c"]),
        ("".join(f"a{letter}" for letter in "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), None),
        ("", []),
        ("\n", [""]),
    ],
)
def test_lines(text: str, found: list[str] | None) -> None:
    assert lines(text) == ([text] if found is None else found)


def test_halves() -> None:
    assert without_halves("a\ud83d\ude00b\ud800c") == "a😀b\ufffdc"
