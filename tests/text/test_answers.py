"""Answers that are parted as they grow: reasoning, what is said, and calls of tools in the ways templates teach."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from moecli.errors import UsageError
from moecli.text import grammar, template_options
from moecli.text.answers import AnswerParts, AnswerStyle, Text, behind_reasoning, parted, style_after
from moecli.text.chat import ChatTemplate, Message
from moecli.text.stream import TextStream
from moecli.text.tokenizer import Tokenizer
from moecli.text.tool_calls import ToolCall, required, style_of
from tests.support import scripted, toy_tokenizers

ENDS = frozenset({1})
THINK = ("<think>", "</think>")
PARAMETERS = {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "", "parameters": PARAMETERS}}]
GIVEN = {"place": "Rome", "days": 3}
ARGUMENTS = json.dumps(GIVEN)
OBJECT = json.dumps({"name": "weather", "arguments": GIVEN})
CALLS = {  # by what a template contains: a whole answer
    "<tool_call>": f"<tool_call>\n{OBJECT}\n</tool_call>",
    "[TOOL_CALLS]": f"[TOOL_CALLS] [{OBJECT}]",
    "[TOOL_CALLS] of later ones": f"[TOOL_CALLS]weather[CALL_ID]123456789[ARGS]{ARGUMENTS}",
    "<|tool_call|>": f"<|tool_call|>[{OBJECT}]",
    "<function=": "<tool_call>\n<function=weather>\n<parameter=place>\nRome\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
    "<arg_key>": "<tool_call>weather\n<arg_key>place</arg_key>\n<arg_value>Rome</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
    "<minimax:tool_call>": '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="place">Rome</parameter>\n'
    '<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>',
    "<｜tool▁calls▁begin｜>": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
    f"{ARGUMENTS}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "<｜tool▁calls▁begin｜> of later ones": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
    f"{ARGUMENTS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "<|tool_calls_section_begin|>": "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
    f"<|tool_call_argument_begin|>{ARGUMENTS}<|tool_call_end|><|tool_calls_section_end|>",
}


def parts(style: AnswerStyle, pieces: Sequence[str]) -> list[Any]:
    """The parts of an answer that comes in these pieces, texts of one kind joined."""
    growing = AnswerParts(style)
    found = [part for piece in pieces for part in growing.push(piece)] + growing.finish()
    joined: list[Any] = []
    for part in found:
        last = joined[-1] if joined else None
        if isinstance(part, Text) and isinstance(last, Text) and last.reasoning == part.reasoning:
            joined[-1] = Text(last.text + part.text, part.reasoning)
        else:
            joined.append(part)
    return joined


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_a_call_is_read_however_it_is_cut(name: str, step: int) -> None:
    calls = style_of(f"a template with {name.removesuffix(' of later ones')} in it")
    text = f"Let me see.\n\n{CALLS[name]}"
    pieces = [text[start : start + step] for start in range(0, len(text), step)]
    found = parts(AnswerStyle(calls=calls, tools=TOOLS), pieces)
    assert found == [Text("Let me see."), ToolCall("weather", GIVEN)]


def test_several_calls_and_text_between() -> None:
    style = AnswerStyle(calls=style_of("<tool_call>"), tools=TOOLS)
    call = CALLS["<tool_call>"]
    assert parts(style, [f"{call}\n{call}"]) == [ToolCall("weather", GIVEN)] * 2
    assert parts(style, [f"a {call} b "]) == [Text("a"), ToolCall("weather", GIVEN), Text(" b ")]
    several = AnswerStyle(calls=style_of("[TOOL_CALLS]"), tools=TOOLS)
    assert parts(several, [f"[TOOL_CALLS][{OBJECT}, {OBJECT}]"]) == [ToolCall("weather", GIVEN)] * 2


@pytest.mark.parametrize(
    "body",
    ["{", '{"name": 3, "arguments": {}}', '{"name": "f"}', '["f"]', "null", '{"name": "f", "arguments": "x"}',
     '{"name": "f", "arguments": ' + '{"a":' * 5000 + "1" + "}" * 5001, "", "a b c"],
)  # fmt: skip
def test_what_is_no_call_stays_what_was_said(body: str) -> None:
    text = f"<tool_call>{body}</tool_call>"
    assert parts(AnswerStyle(calls=style_of("<tool_call>"), tools=TOOLS), [text]) == [Text(text)]


def test_a_call_that_is_cut_by_the_limit_stays_what_was_said() -> None:
    text = CALLS["<tool_call>"][:30]
    assert parts(AnswerStyle(calls=style_of("<tool_call>"), tools=TOOLS), [text]) == [Text(text)]


@pytest.mark.parametrize(
    ("opened", "text", "reasoning", "said"),
    [
        (True, "Hm, so.\n</think>\n\nYes.", "Hm, so.", "Yes."),
        (False, "<think>\nHm.\n</think>\nYes. </think>", "Hm.", "Yes. </think>"),
        (False, " \n<think>Hm.</think>", "Hm.", ""),
        (True, "Hm, so", "Hm, so", ""),
        (False, "<thin", "", "<thin"),
        (False, "Yes <think>", "", "Yes <think>"),
        (False, "", "", ""),
        (True, "a < b </thin", "a < b </thin", ""),
    ],
)
def test_reasoning_is_told_apart(opened: bool, text: str, reasoning: str, said: str) -> None:
    style = AnswerStyle(THINK, opened)
    assert parted(style, text) == (reasoning, said)
    letters = parts(style, list(text))
    assert ["".join(each.text for each in letters if each.reasoning is wanted) for wanted in (True, False)] == [
        reasoning, said,
    ]  # fmt: skip


@given(st.lists(st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", " ", "\n", "a", OBJECT, "<"])))
def test_pieces_make_no_difference(pieces: list[str]) -> None:
    for style in (AnswerStyle(THINK), AnswerStyle(THINK, True, style_of("<tool_call>"), TOOLS)):
        assert parts(style, list("".join(pieces))) == parts(style, ["".join(pieces)])


def test_a_call_can_be_required() -> None:
    backend = toy_tokenizers.byte_level()
    backend.add_special_tokens([AddedToken("[TOOL_CALLS]", special=True, normalized=False)])
    tokenizer = Tokenizer(backend, {}, None, False)
    for name in ("<tool_call>", "[TOOL_CALLS]", "<|tool_calls_section_begin|>"):
        style = style_of(name)
        assert style
        wanted = required(style, TOOLS, grammar.marks(tokenizer, ENDS))
        assert wanted
        matcher = grammar.matcher(wanted, tokenizer, ENDS)
        text = CALLS[name].replace("[TOOL_CALLS] [", "[TOOL_CALLS][")
        assert matcher.consume_tokens(tokenizer.encode(text)) and matcher.is_accepting()
    coder = style_of("<function=")
    assert coder and required(coder, TOOLS, {}) is None and style_of("no tools") is None


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(scripted.write(tmp_path_factory.mktemp("scripted")))


def test_the_prompt_tells_whether_the_model_is_reasoning(thinker: Tokenizer) -> None:
    said = [Message("user", "hello")]
    style = style_after(thinker, thinker.encode_chat(said))
    assert (style.reasoning, style.opened, style.calls) == (THINK, True, None)
    off = style_after(thinker, thinker.encode_chat(said, {"enable_thinking": False}), TOOLS)
    assert off.reasoning is None and off.calls == style_of("<tool_call>")


def test_a_grammar_waits_until_the_reasoning_is_over(thinker: Tokenizer) -> None:
    for opened in (True, False):
        whole = behind_reasoning(grammar.of_regex("[0-9]+"), AnswerStyle(THINK, opened), grammar.marks(thinker, ENDS))
        matcher = grammar.matcher(whole, thinker, ENDS)
        start = "" if opened else "<think>"
        ids = thinker.encode(f"{start}Is it 7?\nNo.</think>\n\n42", special=False)
        assert matcher.consume_tokens(ids) and matcher.is_accepting()
        direct = grammar.matcher(whole, thinker, ENDS)
        assert direct.consume_tokens(thinker.encode("42", special=False)) and direct.is_accepting() is not opened
    plain = grammar.of_regex("a")
    assert behind_reasoning(plain, AnswerStyle(), {}) is plain


def test_marks_are_shown_even_as_special_tokens() -> None:
    backend = toy_tokenizers.byte_level()
    backend.add_special_tokens([AddedToken("[THINK]", special=True, normalized=False)])
    tokenizer = Tokenizer(backend, {}, None, False)
    ids = tokenizer.encode("a[THINK]b<|im_end|>c")
    for marks, text in (((), "abc"), (("[THINK]",), "a[THINK]bc")):
        stream = TextStream(tokenizer, marks=marks)
        assert "".join(map(stream.push, ids)) + stream.finish() == text


def template(source: str, path: Path) -> Tokenizer:
    toy_tokenizers.byte_level().save(str(path / "tokenizer.json"))
    toy_tokenizers.write_json(path / "tokenizer_config.json", {"chat_template": source, "eos_token": "<|eos|>"})
    return Tokenizer.load(path)


def test_a_template_tells_what_it_reads() -> None:
    source = (
        "{% if not date is defined %}{% set date = strftime_now('%Y') %}{% endif %}{% set own = 1 %}{{ eos_token }}"
        "{% for m in messages %}{{ m.content }}{{ loop.index }}{% endfor %}{% if tools %}{{ style }}{% endif %}"
        "{{ own }}"
        "{% if add_generation_prompt %}{{ raise_exception is defined }}{% endif %}"
    )
    found = ChatTemplate(source, {"eos_token": "</s>"})
    assert template_options.known(found) == {"date", "style"} and "tools" in found.names


@pytest.mark.parametrize(
    ("source", "wanted", "given"),
    [
        ("{{ enable_thinking }}", True, {"enable_thinking": True}),
        ("{{ thinking }}", False, {"thinking": False}),
        ("{{ enable_thinking }}", "high", {"enable_thinking": True}),
        ("{{ reasoning_effort }}", "low", {"reasoning_effort": "low"}),
        ("{{ reasoning_effort }}", True, {}),
        ("<think></think>", True, {}),
        ("nothing", False, {}),
        ("nothing", True, "does not reason before it answers"),
        ("<think></think>", False, {}),
        ("{{ reasoning_effort }}", False, "cannot be set to 'False'"),
        ("nothing", "low", "cannot be set to 'low'"),
    ],
)
def test_reasoning_by_the_names_that_templates_have_for_it(
    source: str, wanted: bool | str, given: dict[str, Any] | str, tmp_path: Path
) -> None:
    tokenizer = template(source + "{{ messages[0].content }}", tmp_path)
    if isinstance(given, dict):
        assert template_options.thinking(tokenizer, wanted) == given
        return
    with pytest.raises(UsageError, match=given):
        template_options.thinking(tokenizer, wanted)


def test_an_option_that_the_template_does_not_read_is_refused(tmp_path: Path) -> None:
    tokenizer = template("{{ mood }}{{ messages }}", tmp_path)
    template_options.check(tokenizer, {"mood": "calm"})
    with pytest.raises(UsageError, match="has no option 'mod'") as refused:
        template_options.check(tokenizer, {"mod": "calm"})
    assert refused.value.hint == "it has mood"
    with pytest.raises(UsageError, match="has no option 'messages'"):
        template_options.check(tokenizer, {"messages": []})
    with pytest.raises(UsageError, match="has no chat template"):
        template_options.check(Tokenizer(toy_tokenizers.byte_level(), {}, None, False), {"a": 1})
