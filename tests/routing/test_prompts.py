"""Files of prompts as people have them, and traces of any text, read back."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecli.errors import MoecliError
from moecli.routing import files, trace_file
from moecli.routing.exchange import from_jsonl, to_jsonl
from moecli.routing.prompts import Prompt, parse, read
from moecli.text.chat import Message
from tests.support import reports

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
CHAT = Prompt("Be brief.\n\nWhy?", "", (Message("system", "Be brief."), Message("user", "Why?")))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.txt", "one\n\n  \ntwo\r\nthree", ["one", "two", "three"]),
        ("p.txt", "a\x0cb\u2028c\x85d\n", ["a\x0cb\u2028c\x85d"]),
        ("p.txt", "  indented \n", ["  indented "]),
        ("p.txt", '"quoted"\n[1, 2]\n', ['"quoted"', "[1, 2]"]),
        ("p.txt", "a" * 10**6 + "\nb", ["a" * 10**6, "b"]),
        ("p.txt", '{"text": "a"}\n\n{"prompt": "b"}\n', ["a", "b"]),
        ("p.jsonl", '"a"\n{"text": "b", "domain": "d"}\n', ["a", Prompt("b", "d")]),
        ("p.jsonl", json.dumps({"messages": TURNS}), [CHAT]),
        ("p.jsonl", '{"text": null, "prompt": " ", "messages": [{"role": "user", "content": "x"}]}',
         [Prompt("x", "", (Message("user", "x"),))]),
        ("p.jsonl", '{"prompt": "p", "messages": [{"role": "user", "content": "x"}]}', ["p"]),
        ("p.jsonl", '{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "i"}]}, 7]}',
         [Prompt("a", "", (Message("user", "a"),))]),
        ("p.json", '["a", {"text": "b"}, {"prompt": "c", "domain": "d"}]', ["a", "b", Prompt("c", "d")]),
        ("p.json", '[\n  "a",\n  "b"\n]\n', ["a", "b"]),
        ("p.json", '{\n "text": "a"\n}', ["a"]),
        ("p.txt", '["a", "b"]', ["a", "b"]),
        ("p.jsonl", '{"text": "a\\ud83d\\ude00\\ud800"}', ["a😀\ufffd"]),
        ("p.jsonl", '{"text": "a\\u0000\\u001b"}', ["a\0\x1b"]),
        ("p.csv", 'text,domain\nThe sea,a\n"x, y",b\n', [Prompt("The sea", "a"), Prompt("x, y", "b")]),
        ("p.csv", "domain, prompt\r\na,The sea\r\n", [Prompt("The sea", "a")]),
        ("p.csv", "text\nThe sea\n\nLand\n", ["The sea", "Land"]),
        ("p.CSV", 'text,domain\n"two\nlines",a\n,b\n', [Prompt("two\nlines", "a")]),
        ("p.csv", "text,domain,more\nThe sea\nLand,,x,y\n", ["The sea", "Land"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_files(tmp_path: Path, name: str, content: str, expected: list[str | Prompt], packed: bool) -> None:
    data = content.encode("utf-8-sig")
    file = tmp_path / (f"{name}.gz" if packed else name)
    file.write_bytes(gzip.compress(data) if packed else data)
    told: list[str] = []
    assert read(file, told.append) == [each if isinstance(each, Prompt) else Prompt(each) for each in expected]
    assert bool(told) == ("\\ud800" in content)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", "", "holds no prompt"),
        ("p.txt", "\ufeff\n \n\u2028\n", "holds no prompt"),
        ("p.json", "[]", "holds no prompt"),
        ("p.json", '["a", ', "is no JSON array of prompts"),
        ("p.json", "[1]", "is no JSON array of prompts"),
        ("p.json", '["a", {"t": 1}]', "item 2 of p.json has no text, prompt or messages"),
        ("p.jsonl", '{"text": "a"}\nplain\n', "line 2 of p.jsonl has no text"),
        ("p.jsonl", '{"text": "a"}\n\n{"text": 5}', "line 3 of p.jsonl has no text"),
        ("p.jsonl", '{"messages": [{"role": "user"}]}', "item 1 of p.jsonl has no text"),
        ("p.jsonl", '{"text": "a", "domain": ["\\u001b"]}', "has a domain that is no text: "),
        ("p.jsonl", "[" * 100_000, "line 1 of p.jsonl has no text"),
        ("p.jsonl", "9" * 5000, "line 1 of p.jsonl has no text"),
        ("p.csv", "question,domain\nThe sea,a\n", "no column text or prompt, but 'question, domain'"),
        ("p.csv", "The sea\nLand\n", "no column text or prompt, but 'The sea'"),
        ("p.csv", "text,domain\n ,a\n", "holds no prompt"),
        ("p.csv", "text\n" + "a" * 200_000, "is no CSV: field larger"),
    ],
)
def test_what_holds_no_prompts(name: str, content: str, words: str) -> None:
    with pytest.raises(MoecliError, match=words) as caught:
        parse(content.encode(), name, print)
    assert caught.value.hint and caught.value.message.isprintable() and len(caught.value.message) < 200


ANY_TEXT = st.text(st.characters(), max_size=8)  # surrogates, controls, line breaks of every kind


@given(names=st.lists(ANY_TEXT, min_size=2, max_size=2, unique=True), piece=ANY_TEXT, model=ANY_TEXT)
def test_a_trace_of_any_text_can_be_read(names: list[str], piece: str, model: str, tmp_path_factory) -> None:
    trace = reports.trace(layers=1, tokens=20)
    trace = replace(trace, domains=(*names, "third"[:5]), model=model, pieces=trace.pieces | {0: piece})
    if len(set(trace.domains)) < 3:
        return
    folder = tmp_path_factory.getbasetemp()
    for name in ("any.trace", "any.jsonl"):
        files.write(trace, folder / name)
        again = files.read(folder / name)
        assert again.model == model and set(again.domains) == set(trace.domains)
        used = {number: trace.pieces.get(number) for number in trace.ids.tolist()}
        assert {number: again.pieces.get(number) for number in used} == used
    assert all(line.isprintable() for line in to_jsonl(trace))
    assert from_jsonl(to_jsonl(trace)).model == model
    assert trace_file.load(folder / "any.trace").tokens == 20
