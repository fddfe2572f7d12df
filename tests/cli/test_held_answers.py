"""`run` with a schema, a grammar, or options of the chat template: what it prints and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support import scripted
from tests.support.in_process import moecli

SCHEMA = {"type": "object", "properties": {"masts": {"enum": [1, 2]}}, "required": ["masts"]}
THOUGHT = "".join(scripted.THOUGHT)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(scripted.write(tmp_path_factory.mktemp("scripted")))


def test_an_answer_is_held_to_a_schema_or_a_grammar(tmp_path: Path) -> None:
    schema, word = tmp_path / "ship.json", tmp_path / "word.regex"
    schema.write_text(json.dumps(SCHEMA | {"additionalProperties": False}))
    word.write_text("[a-z]{5}\n")
    document = moecli("run", "tiny", "A ship", "--json-schema", str(schema), "--json").json
    assert json.loads(document["text"])["masts"] in (1, 2) and document["finish_reason"] == "stop"
    assert re.fullmatch("[a-z]{5}\n", moecli("run", "tiny", "A ship", "--grammar", str(word), "-q").out)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"type": "ship"}', "error: the JSON schema is not supported: Invalid type: ship\nhint: "),
        ("{", "is not readable JSON"),
        (None, "cannot be read: No such file or directory\nhint: name a file"),
    ],
)
def test_a_schema_that_is_none(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    refused = moecli("run", "tiny", "A ship", "--json-schema", str(tmp_path / "a.json"))
    assert refused.code == 2 and said in refused.failure and not refused.out


def test_a_schema_and_a_grammar_at_once() -> None:
    refused = moecli("run", "tiny", "A ship", "--json-schema", "a", "--grammar", "b")
    assert refused.code == 2 and "--json-schema and --grammar cannot both be meant" in refused.failure


def test_reasoning_is_told_apart_and_switched_off(thinker: str) -> None:
    asked = ("run", thinker, "hello", "--temperature", "0", "--json")
    document = moecli(*asked).json
    assert document["reasoning"] == THOUGHT and document["text"].startswith("It is forty two.")
    silent = moecli(*asked, "--template-option", "enable_thinking=false").json
    assert "reasoning" not in silent and silent["text"] == document["text"]
    plain = moecli("run", thinker, "hello", "--temperature", "0", "-q").out
    assert plain.startswith(f"{THOUGHT}</think>\n\nIt is")


def test_a_grammar_is_for_what_follows_the_reasoning(thinker: str, tmp_path: Path) -> None:
    (tmp_path / "answer.lark").write_text('start: "It is forty two."')
    held = moecli(
        "run", thinker, "hello", "--temperature", "0", "--grammar", str(tmp_path / "answer.lark"), "--json"
    ).json  # fmt: skip
    assert (held["reasoning"], held["text"], held["finish_reason"]) == (THOUGHT, "It is forty two.", "stop")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["mood=1"], "error: the chat template has no option 'mood'\nhint: it has enable_thinking\n"),
        (["enable_thinking"], "error: --template-option 'enable_thinking' has no value\n"),
        (["enable_thinking=true", "--raw"], "error: --raw uses no chat template, and so no --template-option\n"),
    ],
)
def test_options_that_are_none(thinker: str, options: list[str], said: str) -> None:
    refused = moecli("run", thinker, "hello", "--template-option", *options)
    assert refused.code == 2 and said in refused.failure


def test_a_model_without_a_template_has_no_options_of_one() -> None:
    refused = moecli("run", "tiny", "A ship", "--template-option", "a=1")
    assert refused.code == 2 and "has no chat template, and so no options of one" in refused.failure
