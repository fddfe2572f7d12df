"""How chat templates teach models to call tools: a table of styles, and the calls in what a model wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from moecli.errors import MoecliError, json_object
from moecli.text.grammar import Grammar, alternatives, literal, of_lark, of_schema

Types = Mapping[str, Mapping[str, Any]]  # of a tool's parameters: their schemas by name


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool by name, and what it is to be called with."""

    name: str
    arguments: Mapping[str, Any]


class _NoCall(MoecliError):
    """A text that is no call."""


@dataclass(frozen=True, slots=True)
class ToolStyle:
    """One way to write calls: between which marks, and how; `wrap` is a whole call around its JSON arguments."""

    sign: str  # a template that contains it teaches this style
    open: str
    close: str | None  # None: up to the end of the answer
    read: Callable[[str, Mapping[str, Types]], Iterator[ToolCall]]
    wrap: tuple[str, str] | None = None  # with {name}; None: arguments are not JSON
    more: tuple[str, ...] = ()  # marks inside

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that must be seen even if they are special tokens."""
        return self.open, *([self.close] if self.close else ()), *self.more


def _objects(body: str, known: Mapping[str, Types]) -> Iterator[ToolCall]:
    """{"name": ..., "arguments": {...}}, one, several after another, or a list of them."""
    decoder, place = json.JSONDecoder(), 0
    while place < len(body):
        value, place = decoder.raw_decode(body, place)
        for each in value if isinstance(value, list) else [value]:
            given = each.get("arguments", each.get("parameters"))
            yield ToolCall(each["name"], json.loads(given) if isinstance(given, str) else given)
        place += len(body[place:]) - len(body[place:].lstrip(" \n\r\t;,"))


def _tagged(body: str, known: Mapping[str, Types]) -> Iterator[ToolCall]:
    """A JSON object, or functions whose parameters stand in tags of their own."""
    if body.lstrip().startswith(("{", "[")):
        yield from _objects(body.strip(), known)
        return
    for found in re.finditer(r"<function=([^>\n]+)>(.*?)</function>", body, re.DOTALL):
        given = re.findall(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", found[2], re.DOTALL)
        yield _typed(found[1], given, known)
    single = re.match(r"\s*([^\s<]+)\s*((?:<arg_key>.*)?)$", body, re.DOTALL)
    if single and (single[2] or single[1] in known):
        pair = r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>"
        yield _typed(single[1], re.findall(pair, single[2], re.DOTALL), known)


def _invoked(body: str, known: Mapping[str, Types]) -> Iterator[ToolCall]:
    """<invoke name="..."> with a <parameter name="..."> each."""
    for found in re.finditer(r'<invoke name="?([^">]+)"?>(.*?)</invoke>', body, re.DOTALL):
        given = re.findall(r'<parameter name="?([^">]+)"?>(.*?)</parameter>', found[2], re.DOTALL)
        yield _typed(found[1], given, known)


def _named(body: str, known: Mapping[str, Types]) -> Iterator[ToolCall]:
    """A list of objects, or NAME[ARGS]{...}, each behind the opening mark."""
    if body.lstrip().startswith(("[{", "{", "[ {")):
        yield from _objects(body.strip(), known)
        return
    for each in body.split("[TOOL_CALLS]"):
        name, _, given = each.partition("[ARGS]")
        yield ToolCall(name.partition("[CALL_ID]")[0].strip(), json.loads(given))


def _separated(begin: str, separator: str, end: str) -> Callable[[str, Mapping[str, Types]], Iterator[ToolCall]]:
    """BEGIN name SEPARATOR arguments END, where the name may have a kind before or behind it."""

    def read(body: str, known: Mapping[str, Types]) -> Iterator[ToolCall]:
        for each in body.split(begin)[1:]:
            name, _, given = each.partition(end)[0].partition(separator)
            if fenced := re.match(r"([^\n]+)\n```json\n(.*?)\n?```", given, re.DOTALL):  # function SEPARATOR name
                name, given = fenced[1], fenced[2]
            plain = re.sub(r":\d+$", "", name.strip()).removeprefix("functions.")
            yield ToolCall(plain, json.loads(given))

    return read


_DEEPSEEK = ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>")
_DEEPSEEK_ALL = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_KIMI = ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>")
_KIMI_ALL = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
_OBJECT = ('{{"name": "{name}", "arguments": ', "}}")
_LIST = (f"[{_OBJECT[0]}", f"{_OBJECT[1]}]")
_TAGS = ("<tool_call>", "</tool_call>")
_STYLES = (  # the first whose sign a template contains
    ToolStyle(_DEEPSEEK_ALL[0], *_DEEPSEEK_ALL, _separated(*_DEEPSEEK), more=_DEEPSEEK),
    ToolStyle(
        _KIMI_ALL[0], *_KIMI_ALL, _separated(*_KIMI), (f"{_KIMI[0]}functions.{{name}}:0{_KIMI[1]}", _KIMI[2]), _KIMI
    ),
    ToolStyle("<minimax:tool_call>", "<minimax:tool_call>", "</minimax:tool_call>", _invoked),
    ToolStyle("[TOOL_CALLS]", "[TOOL_CALLS]", None, _named, _LIST, ("[ARGS]", "[CALL_ID]")),
    ToolStyle("<|tool_call|>", "<|tool_call|>", None, _objects, _LIST),
    ToolStyle("<function=", *_TAGS, _tagged),
    ToolStyle("<arg_key>", *_TAGS, _tagged),
    ToolStyle(_TAGS[0], *_TAGS, _tagged, (f"\n{_OBJECT[0]}", f"{_OBJECT[1]}\n")),
)


def style_of(template: str) -> ToolStyle | None:
    """How a chat template wants calls to be written; None if it does not say, or in no way that is known."""
    return next((style for style in _STYLES if style.sign in template), None)


def parse(style: ToolStyle, body: str, tools: Sequence[Mapping[str, Any]]) -> list[ToolCall]:
    """The calls in what stands between the marks; none if any of it cannot be read."""
    known = {tool["function"]["name"]: _parameters(tool) for tool in tools}
    with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError, MoecliError):
        return [_checked(call) for call in style.read(body, known)]
    return []


def call_of(name: str, arguments: str) -> ToolCall | None:
    """A tool's call with arguments as JSON; None if they cannot be read."""
    with suppress(ValueError, TypeError, RecursionError, MoecliError):
        return _checked(ToolCall(name, json.loads(arguments)))
    return None


def required(style: ToolStyle, tools: Sequence[Mapping[str, Any]], known: Mapping[str, int]) -> Grammar | None:
    """One call of one of these tools, with arguments as it declares them; None where the style has no JSON.

    `known`: marks by their ids.
    """
    if style.wrap is None:
        return None
    before, after = style.wrap
    calls = []
    for tool in tools:
        name, schema = tool["function"]["name"], tool["function"].get("parameters") or {"type": "object"}
        opening = literal(style.open + before.format(name=name), known)
        closing = literal(after.format() + (style.close or ""), known)
        calls.append(f"{opening} %json {json.dumps(of_schema(schema).body['json_schema'])} {closing}")
    return of_lark(f"start: {alternatives(calls)}")


def _parameters(tool: Mapping[str, Any]) -> Types:
    given = tool["function"].get("parameters")
    found = given.get("properties") if isinstance(given, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _typed(name: str, given: Sequence[tuple[str, str]], known: Mapping[str, Types]) -> ToolCall:
    """Values that were written as plain text: JSON, unless the tool wants a string."""
    types = known.get(name.strip(), {})
    return ToolCall(name.strip(), {key.strip(): _value(text, types.get(key.strip())) for key, text in given})


def _value(text: str, schema: Mapping[str, Any] | None) -> Any:
    if isinstance(schema, Mapping) and schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _checked(call: ToolCall) -> ToolCall:
    """_NoCall for what JSON can hold and a call cannot."""
    if not isinstance(call.name, str) or not call.name or not isinstance(call.arguments, dict):
        raise _NoCall("no call")
    json_object(json.dumps(call.arguments), _NoCall)  # as deep as others are read
    return call
