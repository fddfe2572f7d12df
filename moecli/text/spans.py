"""Span filling, as T5 was taught: sentinels stand in a prompt for text that is missing, and head it in the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from moecli.text.stream import TextStream
from moecli.text.tokenizer import Tokenizer

_MOST = 1000  # sentinels asked for; T5 has 100
_MISSING, _RUN = 0.15, 3.0  # of a text that has gaps: the share left out, in runs of so many tokens


@dataclass(frozen=True, slots=True)
class Span:
    """The text that an answer gives for one sentinel."""

    sentinel: str
    text: str


def sentinels(tokenizer: Tokenizer) -> dict[int, str]:
    """The names `<extra_id_0>`, `<extra_id_1>`, ... by id, in their order; empty where the first is not known."""
    found: dict[int, str] = {}
    for number in range(_MOST):
        name = f"<extra_id_{number}>"
        if (token := tokenizer.id_of(name)) is None:
            break
        found[token] = name
    return found


def spans(tokenizer: Tokenizer, prompt: str, answer: Sequence[int]) -> list[Span]:
    """What an answer's ids give for each sentinel of the prompt, or each there is, in the order of the answer."""
    names = sentinels(tokenizer)
    wanted = {token for token, name in names.items() if name in prompt} or names.keys()
    found = [(token, ids) for token, ids in _parts(names, answer) if token is not None and token in wanted]
    return [Span(names[token], tokenizer.decode(ids).strip()) for token, ids in found]


def filled(prompt: str, found: Sequence[Span]) -> str:
    """The prompt with these spans in it; a sentinel without one stays."""
    for span in found:
        prompt = prompt.replace(span.sentinel, span.text, 1)
    return prompt


def _parts(names: Mapping[int, str], answer: Sequence[int]) -> list[tuple[int | None, list[int]]]:
    """The runs of ids, each behind its sentinel; None before the first."""
    parts: list[tuple[int | None, list[int]]] = [(None, [])]
    for token in answer:
        if token in names:
            parts.append((token, []))
        else:
            parts[-1][1].append(token)
    return parts


def with_gaps(ids: Sequence[int], names: Sequence[int], random: Random) -> tuple[list[int], list[int]]:
    """A text with gaps, and what is missing in it, each span behind its sentinel: T5's task (arXiv 1910.10683, 3.3).

    15% of the ids are missing, in runs of 3 on average. A text that has gaps, or is too short for one, stays.
    """
    if len(ids) < 2 or len(names) < 2 or set(names) & set(ids):
        return list(ids), []
    missing = min(max(round(len(ids) * _MISSING), 1), len(ids) - 1)
    gaps = max(1, min(round(missing / _RUN), len(names) - 1, len(ids) - missing))
    read: list[int] = []
    written: list[int] = []
    place = 0
    runs = zip(names, _parted(len(ids) - missing, gaps, random), _parted(missing, gaps, random), strict=False)
    for name, kept, left_out in runs:
        read += [*ids[place : place + kept], name]
        written += [name, *ids[place + kept : place + kept + left_out]]
        place += kept + left_out
    return read, [*written, names[gaps]]


def _parted(total: int, parts: int, random: Random) -> list[int]:
    """Lengths of so many runs, none empty, of `total` together."""
    cuts = [0, *sorted(random.sample(range(1, total), parts - 1)), total]
    return [end - start for start, end in pairwise(cuts)]


class SpanStream:
    """As TextStream, of an answer in spans: each on a line of its own behind its sentinel.

    It stops at a sentinel that is not in the prompt, where that has some: what follows belongs to no gap.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._names = sentinels(tokenizer)
        self._asked = self._names.keys() & set(prompt)
        self._stream = TextStream(tokenizer, stops)
        self._began = self._closed = False

    @property
    def stopped(self) -> bool:
        """Whether nothing follows: behind a stop text, or the last span."""
        return self._closed or self._stream.stopped

    @property
    def stop(self) -> str | None:
        """The stop text that ended it."""
        return self._stream.stop

    def push(self, token_id: int) -> str:
        """The text that can be printed now that this token is known."""
        if self.stopped:
            return ""
        if token_id not in self._names:
            piece = self._stream.push(token_id)
            self._began = self._began or bool(piece)
            return piece
        rest = self._stream.finish()
        if self._asked and token_id not in self._asked:
            self._closed = True
            return rest
        self._stream = TextStream(self._tokenizer, self._stops)
        line = "\n" if self._began or rest else ""
        self._began = True
        return f"{rest}{line}{self._names[token_id]} "

    def finish(self) -> str:
        """What was held back."""
        return self._stream.finish()
