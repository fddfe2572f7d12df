"""The parts of an answer, as its model writes them into one text: its reasoning, what it says, and calls of tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from moecli.text import harmony
from moecli.text.grammar import Grammar, literal
from moecli.text.parts import Part, Parts, Text
from moecli.text.stream import possible_start
from moecli.text.tokenizer import Tokenizer
from moecli.text.tool_calls import ToolStyle, parse, style_of

_TAGS = (  # around a model's reasoning
    ("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"), ("◁think▷", "◁/think▷"),
    ("<reasoning>", "</reasoning>"),
)  # fmt: skip

_TAIL = 16  # ids of a prompt whose end is looked at


State = Literal["start", "reasoning", "said", "call"]


@dataclass(frozen=True, slots=True)
class AnswerStyle:
    """How a model parts its answers. `tools`: those it was given, as functions in OpenAI's form."""

    reasoning: tuple[str, str] | None = None  # the tags around it
    opened: bool = False  # the prompt ends inside the reasoning
    calls: ToolStyle | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    channels: bool = False  # messages with headers, as Harmony has them, instead of tags and marks

    @property
    def reasons(self) -> bool:
        """Whether reasoning may come before what is said."""
        return self.channels or self.reasoning is not None

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that part an answer: they must be seen even if they are special tokens."""
        if self.channels:
            return harmony.MARKS
        return (*(self.reasoning or ()), *(self.calls.marks if self.calls else ()))


PLAIN = AnswerStyle()


def reasoning_tags(tokenizer: Tokenizer) -> tuple[str, str] | None:
    """The tags of a model that reasons before it answers: its template or its vocabulary has them."""
    template = tokenizer.chat_template
    source = template.source if template else ""
    for tags in _TAGS:
        if tags[1] in source or (template and tokenizer.id_of(tags[0]) is not None is not tokenizer.id_of(tags[1])):
            return tags
    return None


def style_after(tokenizer: Tokenizer, prompt: Sequence[int], tools: Sequence[Mapping[str, Any]] = ()) -> AnswerStyle:
    """How the answer to a conversation with these ids is parted."""
    tags, template = reasoning_tags(tokenizer), tokenizer.chat_template
    if template and harmony.writes(template.source):
        return AnswerStyle(tools=tools, channels=True)
    end = tokenizer.decode(prompt[-_TAIL:], skip_special=False).rstrip()
    calls = style_of(template.source) if template and tools else None
    if tags is not None and end.endswith(tags[1]):  # the prompt has the reasoning, an empty one
        tags = None
    return AnswerStyle(tags, tags is not None and end.endswith(tags[0]), calls, tools)


def parted(style: AnswerStyle, text: str) -> tuple[str, str]:
    """The reasoning and the rest of a whole answer."""
    parts = parts_of(style)
    texts = [part for part in (*parts.push(text), *parts.finish()) if isinstance(part, Text)]
    reasoning, said = (["".join(each.text for each in texts if each.reasoning is wanted)] for wanted in (True, False))
    return reasoning[0], said[0]


def behind_reasoning(grammar: Grammar, style: AnswerStyle, known: Mapping[str, int]) -> Grammar:
    """A grammar of the answer alone, where the model may reason before it; `known`: marks by their ids."""
    if style.channels:
        return replace(grammar, opening=harmony.opening(known))
    if style.reasoning is None:
        return grammar
    opening, closing = (literal(tag, known) for tag in style.reasoning)
    special = style.reasoning[1] in known
    thought = f"/(.|\\n)*/ {closing}" if special else "thought"
    rule = "" if special else f"thought[suffix={closing}]: /(.|\\n)*/\n"
    before = f"{thought} SPACE?" if style.opened else f"({opening} {thought} SPACE?)?"
    return replace(grammar, opening=f"start: {before} @answer\n{rule}SPACE: /[ \\n]{{1,2}}/\n")


def parts_of(style: AnswerStyle) -> Parts:
    """What parts the answers of a style."""
    return harmony.HarmonyParts() if style.channels else AnswerParts(style)


class AnswerParts:
    """Parts an answer as it grows. Space around the reasoning, and before a call, belongs to neither."""

    def __init__(self, style: AnswerStyle) -> None:
        self._style = style
        self._state: State = "reasoning" if style.opened else "start" if style.reasoning else "said"
        self._fresh = self._state != "said"  # nothing of the state's text has been shown yet
        self._held = ""
        self._ready: list[Part] = []

    def push(self, text: str) -> list[Part]:
        """What is certain now that this text is known."""
        self._held += text
        while self._advance():
            continue
        ready, self._ready = self._ready, []
        return ready

    def finish(self) -> list[Part]:
        """What was held back."""
        if self._state == "call":
            self._call(self._held, ended=True)
        else:
            rest = self._held.rstrip() if self._state == "reasoning" else self._held
            self._show(rest)
        self._held = ""
        ready, self._ready = self._ready, []
        return ready

    def _advance(self) -> bool:
        """One step: whether there may be another."""
        if self._state == "start":
            return self._start()
        if self._state == "call":
            assert self._style.calls is not None
            closing = self._style.calls.close
            body, found, rest = self._held.partition(closing) if closing else (self._held, "", "")
            if not found:
                return False
            self._call(body, ended=False)
            self._held = rest
            self._begin("said", fresh=False)
            return True
        if self._fresh:
            self._held = self._held.lstrip()
            self._fresh = not self._held
        mark = self._mark()
        if mark is None:
            self._show(self._held)
            self._held = ""
            return False
        before, found, rest = self._held.partition(mark)
        if found:
            self._show(before.rstrip())
            self._held = rest
            self._begin("said" if self._state == "reasoning" else "call", fresh=True)
            return True
        kept = len(before[: possible_start(before, mark)].rstrip())
        self._show(before[:kept])
        self._held = before[kept:]
        return False

    def _start(self) -> bool:
        assert self._style.reasoning is not None
        opening, given = self._style.reasoning[0], self._held.lstrip()
        if given.startswith(opening):
            self._held = given[len(opening) :]
            self._begin("reasoning", fresh=True)
            return True
        if opening.startswith(given):
            return False
        self._begin("said", fresh=False)
        return True

    def _mark(self) -> str | None:
        """What ends the text of this state, where anything does."""
        if self._state == "reasoning":
            return self._style.reasoning[1] if self._style.reasoning else None
        return self._style.calls.open if self._style.calls else None

    def _begin(self, state: State, fresh: bool) -> None:
        self._state, self._fresh = state, fresh

    def _call(self, body: str, ended: bool) -> None:
        """The calls in a body; one that cannot be read is what was said, so that nothing is lost."""
        assert self._style.calls is not None
        calls = parse(self._style.calls, body, self._style.tools)
        if calls:
            self._ready += calls
        else:
            self._ready.append(Text(self._style.calls.open + body + ("" if ended else self._style.calls.close or "")))

    def _show(self, text: str) -> None:
        if text:
            self._ready.append(Text(text, self._state == "reasoning"))
