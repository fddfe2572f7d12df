"""OpenAI's Harmony, the form of gpt-oss's answers: messages with a header each, which names their channel.

<|channel|>analysis<|message|>reasoning<|end|><|start|>assistant<|channel|>final<|message|>what is said
<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{"argument": 1}<|call|>
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from moecli.text.grammar import literal
from moecli.text.parts import Part, Text
from moecli.text.stream import possible_start
from moecli.text.tool_calls import call_of

_MESSAGE, _START = "<|message|>", "<|start|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>", _START)
MARKS = ("<|channel|>", "<|constrain|>", _MESSAGE, *_ENDS)
_ANALYSIS, _FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
_NEXT = "<|end|><|start|>assistant"
Kind = Literal["reasoning", "said", "call"]


def writes(template: str) -> bool:
    """Whether a chat template is of models that answer so."""
    return "<|channel|>" in template and _MESSAGE in template


def opening(known: Mapping[str, int]) -> str:
    """What may come before an answer that is held to a grammar, in Lark; `known`: marks by their ids."""
    analysis, following, final = (literal(each, known) for each in (_ANALYSIS, _NEXT, _FINAL))
    return f"start: ({analysis} /(.|\\n)*/ {following})? {final} @answer\n"


class HarmonyParts:
    """Parts such an answer as it grows."""

    def __init__(self) -> None:
        self._held = ""
        self._kind: Kind | None = None  # of the message; None: its header is not complete
        self._tool = ""  # that is called

    def push(self, text: str) -> list[Part]:
        """What is certain now that this text is known."""
        self._held += text
        ready: list[Part] = []
        while self._advance(ready):
            continue
        return ready

    def finish(self) -> list[Part]:
        """What was held back; of a header that was cut nothing."""
        rest, self._held = self._held, ""
        if self._kind is None:
            return [] if rest.startswith("<|") or not rest else [Text(rest)]
        return self._message(rest)

    def _advance(self, ready: list[Part]) -> bool:
        """One step: whether there may be another."""
        if self._kind is None:
            header, found, rest = self._held.partition(_MESSAGE)
            if not any(mark.startswith(self._held[: len(mark)]) for mark in MARKS):
                self._kind = "said"  # no header at all
            elif found:
                self._held = rest
                self._begin(header)
            return self._kind is not None
        ends = [place for mark in _ENDS if (place := self._held.find(mark)) >= 0]
        if ends:
            ready += self._message(self._held[: min(ends)])
            self._held, self._kind = self._held[min(ends) :], None
            mark = next(mark for mark in _ENDS if self._held.startswith(mark))
            if mark != _START:  # which begins the next header
                self._held = self._held[len(mark) :]
            return bool(self._held)
        if self._kind != "call":
            kept = min(possible_start(self._held, mark) for mark in _ENDS)
            ready += self._message(self._held[:kept])
            self._held = self._held[kept:]
        return False

    def _begin(self, header: str) -> None:
        channel = re.search(r"<\|channel\|>\s*(\w+)", header)
        called = re.search(r"to=functions\.([^\s<]+)", header)
        self._tool = called[1] if called else ""
        self._kind = "call" if called else "reasoning" if channel and channel[1] == "analysis" else "said"

    def _message(self, body: str) -> list[Part]:
        """A part of a message, or a whole call; one that cannot be read is what was said, so that nothing is lost."""
        if self._kind == "call":
            return [call_of(self._tool, body) or Text(body)]
        return [Text(body, self._kind == "reasoning")] if body else []
