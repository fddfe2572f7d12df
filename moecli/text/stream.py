"""Token ids to text as they arrive: never half a character, never a part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from moecli.text.tokenizer import Tokenizer

_UNKNOWN = "\ufffd"
_CHARACTER = 4  # bytes, at most; a token holds at least one
_TAIL = 2 * _CHARACTER  # tokens that decide the last character, wherever they are cut from the rest
_LONGEST_WINDOW = 4 * _TAIL


class TextStream:
    """The decoder of one answer.

    The pieces joined are `decode(all ids)`; with `prompt_ids` they are what the answer adds to the prompt's
    text, so that a space before its first word stays. Only a run of byte-fallback tokens that is not UTF-8
    can differ: decoding the whole takes back even the good characters of such a run, printed by then.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        prompt_ids: Sequence[int] = (),
        marks: Sequence[str] = (),
    ) -> None:
        """`marks`: texts that are shown even where they are special tokens."""
        self._marks = {tokenizer.added_texts[mark]: mark for mark in marks if mark in tokenizer.added_texts}
        self.stop: str | None = None  # the stop string that ended the text
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._pieces: list[str] = []
        self._held = ""  # decoded, and perhaps the start of a stop string
        # Decoders treat the first token of a text in their own way (SentencePiece drops its space). So, once
        # there is text in front of it, each window is decoded behind an anchor, an ordinary token.
        self._anchor: list[int] = []
        self._window: list[int] = []  # tokens not wholly printed
        self._shown = 0  # characters of the window's text that left it
        if prompt_ids:
            if tokenizer.decode(prompt_ids):
                self._anchor = _find_anchor(tokenizer)
            else:  # only a token that prints nothing in front: it still is the first one
                self._window = [number for number in prompt_ids if number not in tokenizer.special_ids]
        self._anchor_length = len(tokenizer.decode(self._anchor))

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self.stop is not None

    @property
    def text(self) -> str:
        """Everything printed so far."""
        return "".join(self._pieces)

    def push(self, token_id: int) -> str:
        """The text that can be printed now that this token is known."""
        if self.stopped:
            return ""
        if token_id in self._tokenizer.special_ids:
            return self._mark(self._marks[token_id]) if token_id in self._marks else ""
        self._window.append(token_id)
        ready = self._window[: len(self._window) - self._inside_character()]
        text = self._decode(ready)
        # Byte-level decoders show an incomplete character as one U+FFFD at the end.
        complete = len(text) - (not self._tokenizer.byte_ids and text.endswith(_UNKNOWN))
        new = text[self._shown : complete]
        self._shown = max(self._shown, complete)
        if text and complete == len(text):
            self._restart(self._window[len(ready) :])
        elif self._shown and len(self._window) > _LONGEST_WINDOW:  # bytes that never become a character
            self._restart(self._window[-_TAIL:])
            self._shown = len(self._decode(self._window)) - 1
        return self._release(new)

    def finish(self) -> str:
        """What was held back. A character that never became complete shows as U+FFFD."""
        if self.stopped:
            return ""
        new = self._decode(self._window)[self._shown :]
        self._window, self._shown = [], 0
        piece = self._release(new)
        if self.stopped:
            return piece
        rest, self._held = self._held, ""
        self._pieces.append(rest)
        return piece + rest

    def _mark(self, mark: str) -> str:
        """What was held back, and a mark behind it."""
        new = self._decode(self._window)[self._shown :]
        self._restart([])
        return self._release(new + mark)

    def _decode(self, window: list[int]) -> str:
        return self._tokenizer.decode(self._anchor + window)[self._anchor_length :]

    def _inside_character(self) -> int:
        """How many byte-fallback tokens at the end are the start of a character."""
        values = self._tokenizer.byte_ids
        run = bytes(values[number] for number in self._window[-_CHARACTER:] if number in values)
        if not run or self._window[-1] not in values:
            return 0
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(run)
        return len(decoder.getstate()[0])

    def _restart(self, window: list[int]) -> None:
        """Go on with the next window; there is text in front of it now."""
        self._window, self._shown = window, 0
        if not self._anchor:
            self._anchor = _find_anchor(self._tokenizer)
            self._anchor_length = len(self._tokenizer.decode(self._anchor))

    def _release(self, new: str) -> str:
        """Add decoded text and let go of what can no longer be the start of a stop string."""
        self._held += new
        found = [(self._held.find(stop), stop) for stop in self._stops]
        ends = [(start + len(stop), start, stop) for start, stop in found if start >= 0]
        if ends:  # the one that is complete first, however the text was cut into tokens
            _, kept, self.stop = min(ends)
            piece, self._held = self._held[:kept], ""
        else:
            kept = min((possible_start(self._held, stop) for stop in self._stops), default=len(self._held))
            piece, self._held = self._held[:kept], self._held[kept:]
        if piece:
            self._pieces.append(piece)
        return piece


def possible_start(text: str, stop: str) -> int:
    """Where the longest end of `text` begins that is a start of `stop`; its length if there is none."""
    place = max(0, len(text) - len(stop) + 1)
    while (place := text.find(stop[0], place)) >= 0:
        if stop.startswith(text[place:]):
            return place
        place += 1
    return len(text)


def _find_anchor(tokenizer: Tokenizer) -> list[int]:
    """Tokens of a plain letter, which no decoder joins with what follows."""
    for letter in "a.0e":
        anchor = tokenizer.encode(letter, special=False)
        if tokenizer.decode(anchor) == letter:
            return anchor
    return []
