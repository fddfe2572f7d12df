"""Schemas and grammars: what is read, what is refused in one sentence, and that tokens mean the text that is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken

import moecli
from moecli.errors import TextError
from moecli.text import grammar
from moecli.text.grammar import Grammar, GrammarError
from moecli.text.stream import TextStream
from moecli.text.tokenizer import Tokenizer
from tests.support import toy_tokenizers

ENDS = frozenset({1})


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(toy_tokenizers.byte_level(), {}, None, False)


def takes(given: Grammar, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a whole answer may be this text."""
    matcher = grammar.matcher(given, tokenizer, ENDS)
    ids = tokenizer.encode(text, special=False)
    return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


@pytest.mark.parametrize("kind", ["byte_level", "metaspace", "tiny"])
def test_a_token_is_the_text_that_is_shown_for_it(kind: str) -> None:
    tokenizer = (
        Tokenizer.load(Path(moecli.__file__).parent / "tiny")
        if kind == "tiny"
        else Tokenizer(getattr(toy_tokenizers, kind)(), {}, None, False)
    )
    guide, before = tokenizer.guide(ENDS), tokenizer.encode("a", special=False)
    for token in range(tokenizer.size):
        if token not in tokenizer.special_ids:
            stream = TextStream(tokenizer, prompt_ids=before)
            shown, meant = stream.push(token) + stream.finish(), guide.decode_bytes([token])
            assert shown == meant.decode(errors="replace") or (shown, meant) == ("\ufffd", b"")  # 0xff is in no text


def test_a_vocabulary_that_the_library_cannot_walk() -> None:
    with pytest.raises(TextError, match="cannot be held to a grammar"):
        Tokenizer(toy_tokenizers.with_sentinels(100), {}, None, False).guide(ENDS)


def test_json_has_bounded_spaces_between_its_parts(tokenizer: Tokenizer) -> None:
    given = grammar.of_object()
    for text in ('{"a":[1,{}]}', json.dumps({"a": [1, {}]}), json.dumps({"a": [1, {"b": None}]}, indent=4)):
        assert takes(given, tokenizer, text)
    assert not takes(given, tokenizer, "{" + " " * 30 + "}") and not takes(given, tokenizer, "[]")


@pytest.mark.parametrize(
    ("name", "text", "good", "bad"),
    [
        ("a.lark", 'start: "yes" | /[0-9]+/', ("yes", "42"), ("no", "yes!")),
        ("a.gbnf", 'root ::= ("x" | "y")+ "z"', ("xyz",), ("z", "xy")),
        ("a.regex", r"a/b[0-9]{2}" + "\n", ("a/b42",), ("a/b4", "a/b42\n")),
        ("a.json", '{"enum": ["red", 3]}', ('"red"', "3"), ('"blue"',)),
    ],
)
def test_languages_by_the_name_of_the_file(
    name: str, text: str, good: tuple[str, ...], bad: tuple[str, ...], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / name).write_text(text)
    read = grammar.of_schema_file if name == "a.json" else grammar.of_grammar_file
    given = read(tmp_path / name)
    assert all(takes(given, tokenizer, each) for each in good)
    assert not any(takes(given, tokenizer, each) for each in bad)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: grammar.of_schema({"type": "objec"}), "the JSON schema is not supported: Invalid type: objec"),
        (lambda: grammar.of_schema({"type": "object", "unevaluatedProperties": False}), "unevaluatedProperties"),
        (lambda: grammar.of_schema({"type": "array", "items": {"$ref": "http://a.example/b"}}), "the JSON schema"),
        (lambda: grammar.of_schema({"type": "integer", "multipleOf": 99991 * 99989}), "multipleOf comes to 9"),
        (lambda: grammar.of_schema({"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}), "multipleOf comes to 9"),
        (lambda: grammar.of_schema({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}), "allows no text"),
        (lambda: grammar.of_lark("start: foo"), 'the grammar is not supported: at 1(8): unknown name: "foo"'),
        (lambda: grammar.of_regex("(a"), "the regular expression is not supported"),
        (lambda: grammar.of_gbnf("root :== ("), "GBNF|the grammar"),
    ],
)  # fmt: skip
def test_what_is_none_is_said_in_one_line(given: Callable[[], Grammar], said: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(GrammarError, match=said.replace("(8)", r"\(8\)")) as refused:
        grammar.matcher(given(), tokenizer, ENDS)
    assert "\n" not in refused.value.message and len(refused.value.message) < 400


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\xff\xfe\x00\x00a", "is not"), (b"[1]", "does not hold a JSON object"), (b" " * 2**21, "larger than 1 MiB")],
)
def test_a_file_that_holds_no_schema(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(GrammarError, match=said):
        grammar.of_schema_file(tmp_path / "a.json")
    with pytest.raises(GrammarError, match="cannot be read: No such file"):
        grammar.of_grammar_file(tmp_path / "none.lark")
    (tmp_path / "b.lark").write_bytes(b"\xff")
    with pytest.raises(GrammarError, match="is not text"):
        grammar.of_grammar_file(tmp_path / "b.lark")


def test_special_tokens_stand_in_a_grammar_by_their_ids() -> None:
    backend = toy_tokenizers.byte_level()
    backend.add_special_tokens([AddedToken("[CALL]", special=True, normalized=False)])
    tokenizer = Tokenizer(backend, {}, None, False)
    (call,) = tokenizer.encode("[CALL]")
    known = grammar.marks(tokenizer, ENDS)
    expression = grammar.literal('[CALL] the "cat"<|im_end|>', known)
    assert expression == f'<[{call}]> " the \\"cat\\"" <[3]>' and grammar.literal("cat", known) == '"cat"'
    matcher = grammar.matcher(grammar.of_lark(f"start: {expression}"), tokenizer, ENDS)
    assert matcher.consume_tokens(tokenizer.encode('[CALL] the "cat"<|im_end|>')) and matcher.is_accepting()
