"""Prompts for a batch, line by line; and the bundled tasks with answers that are right, and wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from moecli.errors import MoecliError
from moecli.routing import tasks
from moecli.routing.prompt_lines import Asked, Unclear, read
from moecli.text.chat import Message


def test_what_lines_ask(tmp_path: Path) -> None:
    path, told = tmp_path / "prompts.jsonl", list[str]()
    path.write_text(
        '{"prompt": "a", "id": "x", "seed": 0, "max_tokens": 5, "colour": 1}\n\n"b"\r\n{"text": "c\\u2028d", "id": 7}\n'
        '{"messages": [{"role": "user", "content": "e"}, {"role": "assistant", "content": "f"}]}\n'
    )
    turns = (Message("user", "e"), Message("assistant", "f"))
    assert read(path, None, told.append) == [
        Asked(1, "a", (), "x", 0, 5), Asked(3, "b"), Asked(4, "c\u2028d", (), 7), Asked(5, "e\n\nf", turns),
    ]  # fmt: skip
    assert len(told) == 1 and "nothing reads colour" in told[0]
    (tmp_path / "prompts.txt").write_text('{"a\n\nb\n')
    assert read(tmp_path / "prompts.txt", None, told.append) == [Asked(1, '{"a'), Asked(3, "b")]
    assert read(Path("-"), b'"stdin"', told.append) == [Asked(1, "stdin")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not readable JSON"), ("[1]", "no"), ("1", "object"), ('"', "not readable JSON"),
        ('{"prompt": ""}', "no prompt"), ('{"prompt": 5}', "no prompt"), ('{"prompt": "a", "seed": -1}', "seed"),
        ('{"prompt": "a", "seed": true}', "seed"), ('{"prompt": "a", "max_tokens": 0}', "max_tokens"),
        ('{"prompt": "a", "id": [1]}', "id is"),
        ('{"prompt": ' + "[" * 9999 + "]" * 9999 + "}", "nested"), ('{"messages": [{"role": 1}]}', "no prompt"),
    ],
)  # fmt: skip
def test_a_line_that_asks_nothing_is_told_and_no_other_suffers(line: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'"a"\n{line}\n"b"\n')
    first, wrong, last = read(path, None, lambda _: None)
    assert (first, last) == (Asked(1, "a"), Asked(3, "b"))
    assert isinstance(wrong, Unclear) and wrong.number == 2 and problem in wrong.problem


def test_files_without_a_prompt(tmp_path: Path) -> None:
    with pytest.raises(MoecliError, match="cannot be read: No such file"):
        read(tmp_path / "none", None, lambda _: None)
    with pytest.raises(MoecliError, match="stdin holds no prompt"):
        read(Path("-"), b"\n \n", lambda _: None)


WORDS = (
    "adventure, beautiful, challenge, dangerous, education, furniture, generates, hurricane, important, jellyfish, "
    "knowledge, landscape, machinery"
)
NUMBERS = '{"kilometres": 42.195, "started": 12480, "finished": 11902, "winner": 7, "minutes": 129}'


@pytest.mark.parametrize(
    ("name", "answer", "passed"),
    [
        ("words", WORDS, True), ("words", WORDS.replace("furniture", "beautiful"), False), ("words", "nine", False),
        ("words", f"{WORDS}, mathematics", False), ("words", WORDS.replace(", ", "\n- "), True),
        ("summary", "A router picks a few experts per token, so a large model runs cheaply.", True),
        ("summary", "It has experts. They rest.", False), ("summary", "", False),
        ("summary", "Models are good.", False), ("marathon", NUMBERS, True),
        ("marathon", f"```json\n{NUMBERS}\n```", True), ("marathon", NUMBERS.replace("129", "209"), False),
        ("marathon", '{"kilometres": "42.195"}', False), ("marathon", "{no}", False), ("marathon", "42.195", False),
        ("apples", "You have 5 apples now.", True), ("apples", "Five.", True), ("apples", "5 - 2 = 3", False),
        ("apples", "apples", False),
    ],
)  # fmt: skip
def test_what_is_said_of_an_answer(name: str, answer: str, passed: bool) -> None:
    check = tasks.check(name, answer)
    assert check.passed is passed and check.found
    assert name in [each.id for each in tasks.asked()]
