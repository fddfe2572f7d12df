"""Harmony, the form of gpt-oss's answers: channels told apart however the text is cut, and calls of tools read."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from moecli.text import grammar, harmony
from moecli.text.answers import AnswerStyle, behind_reasoning, parted, style_after
from moecli.text.harmony import HarmonyParts
from moecli.text.parts import Part, Text
from moecli.text.stream import TextStream
from moecli.text.template_options import calls_tools, reasons
from moecli.text.tokenizer import Tokenizer
from moecli.text.tool_calls import ToolCall
from tests.support import toy_tokenizers

ANALYSIS, FINAL, NEXT = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "<|end|><|start|>assistant"
CALL = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
GIVEN = {"place": "Rome", "days": 3}
ENDS = frozenset({1})
TEMPLATE = "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}{{ tools }}\
{% if add_generation_prompt %}<|start|>assistant{% endif %}{# <|channel|> #}"


def parts(pieces: Sequence[str]) -> list[Part]:
    """Of an answer that comes in these pieces, texts of one kind joined."""
    growing = HarmonyParts()
    joined: list[Part] = []
    for part in [*(part for piece in pieces for part in growing.push(piece)), *growing.finish()]:
        last = joined[-1] if joined else None
        if isinstance(part, Text) and isinstance(last, Text) and last.reasoning == part.reasoning:
            joined[-1] = Text(last.text + part.text, part.reasoning)
        else:
            joined.append(part)
    return joined


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{ANALYSIS}Hm <3.{NEXT}{FINAL}Yes.", [Text("Hm <3.", True), Text("Yes.")]),
        (f"{FINAL}Yes.<|return|>", [Text("Yes.")]),
        (f"{ANALYSIS}Hm", [Text("Hm", True)]),
        (f"{ANALYSIS}Hm<|end|><|start|>assis", [Text("Hm", True)]),
        (f"{ANALYSIS}Hm<|start|>assistant{FINAL}Yes.", [Text("Hm", True), Text("Yes.")]),
        (f"{ANALYSIS}Hm.{NEXT}{CALL}{json.dumps(GIVEN)}<|call|>", [Text("Hm.", True), ToolCall("weather", GIVEN)]),
        (f"{CALL}{json.dumps(GIVEN)}", [ToolCall("weather", GIVEN)]),
        (
            f"<|channel|>commentary<|message|>I look.{NEXT} to=functions.weather{CALL[:21]}<|message|>{{}}<|call|>",
            [Text("I look."), ToolCall("weather", {})],
        ),
        (f"{CALL}{{not JSON<|call|>", [Text("{not JSON")]),
        (f"{CALL}[1]<|call|>", [Text("[1]")]),
        ("Yes < no.", [Text("Yes < no.")]),
        ("<|channel", []),
        ("<", [Text("<")]),
        ("", []),
    ],
)
def test_channels_are_told_apart_however_the_text_is_cut(text: str, found: list[Part]) -> None:
    assert parts([text]) == parts(list(text)) == found


@given(st.lists(st.sampled_from([*harmony.MARKS, "analysis", "final", "assistant", "to=functions.x", "{}", "a", "<|"])))
def test_pieces_make_no_difference(pieces: list[str]) -> None:
    assert parts(pieces) == parts(["".join(pieces)])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    backend = toy_tokenizers.byte_level()
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in harmony.MARKS])
    return Tokenizer(backend, {}, TEMPLATE, False)


def test_a_template_tells_who_answers_so(tokenizer: Tokenizer) -> None:
    style = style_after(tokenizer, tokenizer.encode("a"))
    assert style.channels and style.reasons and style.marks == harmony.MARKS
    assert reasons(tokenizer) and calls_tools(tokenizer)
    assert parted(style, f"{ANALYSIS}Hm.{NEXT}{FINAL}Yes.") == ("Hm.", "Yes.")
    stream = TextStream(tokenizer, marks=style.marks)
    ids = tokenizer.encode(f"{ANALYSIS}Hm.{NEXT}{FINAL}Yes.", special=False)
    assert "".join(map(stream.push, ids)) + stream.finish() == f"{ANALYSIS}Hm.{NEXT}{FINAL}Yes."


def test_a_grammar_holds_the_final_channel(tokenizer: Tokenizer) -> None:
    known = grammar.marks(tokenizer, ENDS)
    whole = behind_reasoning(grammar.of_regex("[0-9]+"), AnswerStyle(channels=True), known)
    for text, allowed in (
        (f"{ANALYSIS}Is it 7?\nNo.{NEXT}{FINAL}42", True), (f"{FINAL}42", True), (f"{FINAL}no", False), ("42", False),
    ):  # fmt: skip
        matcher = grammar.matcher(whole, tokenizer, ENDS)
        assert (matcher.consume_tokens(tokenizer.encode(text, special=False)) and matcher.is_accepting()) is allowed
