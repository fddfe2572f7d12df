"""Markdown that is still being written: whole blocks appear, whatever the pieces are."""

from __future__ import annotations

import pytest

from moecli.output.markdown import MarkdownStream

TEXT = "# Sea\n\nThe *wide* sea\nis `blue`.\n\n```python\ndef f():\n\n    return 1\n```\n\n- one\n- two\n\nThe [end](http://x.y)"


def shown(pieces: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    stream = MarkdownStream()
    for piece in pieces:
        stream.write(piece)
    stream.finish()
    return capsys.readouterr().out


def test_what_is_shown_does_not_depend_on_the_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    whole = shown([TEXT], capsys)
    assert whole == shown(list(TEXT), capsys)
    plain = " ".join(whole.split())
    assert "The wide sea is blue." in plain and "def f(): return 1" in plain and "• one • two" in plain
    assert "*" not in plain and "```" not in plain and "http://x.y" in plain


def test_a_block_appears_once_it_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    stream = MarkdownStream()
    stream.write("The sea\n\n```\na\n\n")
    assert "The sea" in capsys.readouterr().out
    stream.write("b\n```\n")
    assert capsys.readouterr().out == ""
    stream.write("\n")
    assert capsys.readouterr().out.split() == ["a", "b"]


def test_nothing_that_is_written_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(["a\x1b[31m\x9b`\x07`\n\n    \x1b]0;t\x07\n\n[x](\x1bhttp://y)"], capsys)
    assert text.replace("\n", "").isprintable() and "\\x1b[31m" in text
