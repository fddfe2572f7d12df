"""Drafts: what may come next, looked up in the text so far, as far as checking it together pays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_KEY = 3  # tokens that must have stood before
_MEMORY = 1 - 1 / 32  # of guesses: the older count less
_DOUBT = 3  # guesses that failed before any was made
_WEIGHT = 0.25  # of the newest measurement
_TYPICAL_MORE = 0.25  # steps that one more token in a step takes, before it is measured
_FORGIVING = 0.98  # what is left of a cost that forbade a draft, so that it is measured again


class Drafts(Protocol):
    """Proposes tokens, is told of every token of the text, and of what each step cost."""

    def propose(self, most: int) -> list[int]:
        """Up to `most` tokens to check beside the newest one."""
        ...

    def add(self, token: int) -> None:
        """The text has grown by this token."""
        ...

    def measured(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        ...


class PromptLookup:
    """Prompt lookup: where the last tokens have stood before, what followed them then is guessed.

    Guesses are made, and held against the text, whether or not they are proposed: how often they are right costs
    nothing to know. A draft is as long as makes tokens per second most, by that and by what steps took; none is made
    where each costs more than it brings.
    """

    def __init__(self, text: Sequence[int]) -> None:
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # where the text went on the last time
        self._next: int | None = None  # the place in the text that is guessed to follow
        self._right, self._wrong = 0.0, float(_DOUBT)
        self._single: float | None = None  # seconds of a step of one token
        self._more: float | None = None  # and of each further one
        for token in text:
            self.add(token)

    @property
    def chance(self) -> float:
        """That a guess is right."""
        return self._right / (self._right + self._wrong)

    def propose(self, most: int) -> list[int]:
        """As `Drafts`. A text that repeats itself within the draft is taken to go on so."""
        if self._next is None or self._single is None:
            return []
        draft: list[int] = []
        for place in range(self._next, self._next + self._length(most)):
            inside = place < len(self._text)
            draft.append(self._text[place] if inside else draft[place - len(self._text)])
        return draft

    def add(self, token: int) -> None:
        """As `Drafts`."""
        if self._next is not None:
            right = self._text[self._next] == token
            self._right = self._right * _MEMORY + right
            self._wrong = self._wrong * _MEMORY + (not right)
            self._next = self._next + 1 if right else None
        known = self._append(token)
        if self._next is None:
            self._next = known

    def measured(self, tokens: int, seconds: float) -> None:
        """As `Drafts`."""
        if tokens == 1:
            self._single = _mixed(self._single, seconds)
        elif self._single is not None:
            self._more = _mixed(self._more, max(0.0, seconds - self._single) / (tokens - 1))

    def _append(self, token: int) -> int | None:
        """Where the text went on when it last ended so."""
        self._text.append(token)
        if len(self._text) < _KEY:
            return None
        key = tuple(self._text[-_KEY:])
        known = self._after.get(key)
        self._after[key] = len(self._text)
        return known

    def _length(self, most: int) -> int:
        """The number of tokens for which (1 + chance + chance² + ...) / seconds is largest."""
        single = self._single or 1.0
        more = single * _TYPICAL_MORE if self._more is None else self._more
        best, length, kept, rate = 1 / single, 0, 1.0, 1.0
        for drafted in range(1, most + 1):
            kept *= self.chance
            rate += kept
            if (speed := rate / (single + drafted * more)) > best:
                best, length = speed, drafted
        if not length and self._more is not None:
            self._more *= _FORGIVING
        return length


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
