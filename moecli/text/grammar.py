"""What an answer may be: a JSON schema, a grammar or a regular expression, as llguidance takes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecli.errors import UsageError, json_object, printable
from moecli.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

_LARGEST = 2**20  # bytes of a schema or grammar
_MOST_MULTIPLES = 100_000  # states that the library makes for `multipleOf`
# Between the parts of a JSON document: a model that may write any number of spaces can write nothing else for ever.
_WHITESPACE = r"( |\n{1,2}[ \t]{0,24})?"


class GrammarError(UsageError):
    """A schema or grammar that is none, or asks for what cannot be held to."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """One of llguidance's grammars, not yet checked: `body` is a Lark grammar or a JSON schema."""

    kind: str  # as it is called in messages
    body: Mapping[str, Any]
    opening: str = ""  # a Lark grammar of the whole text, in which it is @answer

    def text(self) -> str:
        """As the library reads it: the first grammar is the whole answer."""
        answer = {"name": "answer", **self.body}
        if not self.opening:
            return json.dumps({"grammars": [answer]})
        return json.dumps({"grammars": [{"lark_grammar": self.opening}, answer]})


def of_schema(schema: Mapping[str, Any]) -> Grammar:
    """JSON that obeys a schema. GrammarError here or, for what llguidance does not know, once it is checked."""
    _check_multiples(schema)
    spaced: dict[str, Any] = {"whitespace_pattern": _WHITESPACE}
    own = schema.get("x-guidance")
    guided = dict(schema) | {"x-guidance": spaced | (dict(own) if isinstance(own, Mapping) else {})}
    return Grammar("JSON schema", {"json_schema": guided})


def of_object() -> Grammar:
    """Any JSON object."""
    return of_schema({"type": "object"})


def of_lark(text: str) -> Grammar:
    """llguidance's dialect of Lark."""
    return Grammar("grammar", {"lark_grammar": text})


def of_schema_file(path: Path) -> Grammar:
    """The JSON schema in a file. GrammarError if it holds none."""
    return of_schema(json_object(_read(path), lambda problem: GrammarError(f"{_shown(path)} {problem}")))


def of_grammar_file(path: Path) -> Grammar:
    """A grammar in the language that the file's name tells: .gbnf, .regex, else Lark. GrammarError if it is none."""
    try:
        text = _read(path).decode()
    except UnicodeDecodeError:
        raise GrammarError(f"{_shown(path)} is not text", "a grammar is UTF-8") from None
    if path.suffix == ".regex":
        return of_regex(text.removesuffix("\n"))
    return of_gbnf(text) if path.suffix == ".gbnf" else of_lark(text)


def of_regex(text: str) -> Grammar:
    """A regular expression of the whole answer, in the syntax of Rust's regex."""
    from llguidance import regex_to_lark

    return Grammar("regular expression", {"lark_grammar": f"start: /{regex_to_lark(text, '')}/"})


def of_gbnf(text: str) -> Grammar:
    """The language of llama.cpp."""
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return Grammar("grammar", {"lark_grammar": any_to_lark(text)})
    except Exception as error:  # the converter raises whatever its own checks do
        raise GrammarError(f"the grammar is not GBNF: {printable(str(error), 300)}") from None


def matcher(grammar: Grammar, tokenizer: Tokenizer, end_ids: frozenset[int]) -> LLMatcher:
    """What follows the grammar token by token. GrammarError if it is none, in one line."""
    from llguidance import LLMatcher

    made = LLMatcher(tokenizer.guide(end_ids), grammar.text(), log_level=0)
    if made.is_error():
        reason = " ".join(made.get_error().split())
        raise GrammarError(f"the {grammar.kind} is not supported: {printable(reason, 300)}", _hint(grammar))
    made.compute_bitmask()
    if made.is_stopped():
        raise GrammarError(f"the {grammar.kind} allows no text", _hint(grammar))
    return made


def marks(tokenizer: Tokenizer, end_ids: frozenset[int]) -> dict[str, int]:
    """Added tokens that are no text to the library, though some of them may be shown: <think> and the like."""
    guide = tokenizer.guide(end_ids)
    return {text: token for text, token in tokenizer.added_texts.items() if guide.is_special_token(token)}


def literal(text: str, known: Mapping[str, int]) -> str:
    """A text as a Lark expression, the `known` marks in it by their ids."""
    names = re.compile("|".join(map(re.escape, sorted(known, key=len, reverse=True))) or r"(?!)")
    parts, place = [], 0
    for found in [*names.finditer(text), None]:
        if between := text[place : found.start() if found else None]:
            parts.append(json.dumps(between))
        if found:
            parts.append(f"<[{known[found[0]]}]>")
            place = found.end()
    return " ".join(parts)


def alternatives(expressions: Sequence[str]) -> str:
    """Any one of some Lark expressions."""
    return "(" + " | ".join(expressions) + ")"


def _hint(grammar: Grammar) -> str:
    return "docs/serve.md names what is read" if "json_schema" in grammar.body else "it is llguidance's dialect of Lark"


def _check_multiples(schema: Mapping[str, Any]) -> None:
    """GrammarError where numbers have to be multiples for which the library would count for minutes, in gigabytes."""
    product, found = 1, {each for each in _values_of("multipleOf", schema) if type(each) in (int, float)}
    for each in found:
        product *= max(1, int("".join(filter(str.isdecimal, repr(each).partition("e")[0])) or 1))
    if product > _MOST_MULTIPLES:
        raise GrammarError(f"the JSON schema is not supported: multipleOf comes to {printable(str(product), 40)}")


def _values_of(key: str, value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        if key in value:
            yield value[key]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _values_of(key, each)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise GrammarError(f"{_shown(path)} cannot be read: {error.strerror}", "name a file") from error
    if len(content) > _LARGEST:
        raise GrammarError(f"{_shown(path)} is larger than {_LARGEST >> 20} MiB")
    return content


def _shown(path: Path) -> str:
    return printable(str(path), 80)
