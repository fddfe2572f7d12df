"""Text to pieces as SentencePiece does it: normalised by a table of characters, cut by merges or by likelihood."""

from __future__ import annotations

import heapq
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass

from moecli.errors import TextError

SPACE = "\u2581"
_UNKNOWN_PENALTY = 10.0
_LARGEST: float = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]  # FLT_MAX
_MOST_CACHED = 50_000
_LONGEST_CACHED = 64

Pieces = list[tuple[str, bool]]  # each with whether it is in the vocabulary


@dataclass(frozen=True, slots=True)
class Normalizer:
    """How text is changed before it is cut."""

    charsmap: bytes = b""  # a double-array trie of UTF-8 prefixes, then what takes their place
    dummy_prefix: bool = True
    remove_extra: bool = True  # spaces at both ends, and all but one inside
    escape: bool = True  # spaces become U+2581

    def compile(self, frozen: Set[str]) -> Callable[[str, bool], str]:
        """Text, and whether the dummy space ends it, to normalised text; strings in `frozen` stay as they are."""
        rules = _Charsmap(self.charsmap) if self.charsmap else None
        kept = _Prefixes(frozen)
        mark = SPACE if self.escape else " "

        def prefixes(text: str) -> Iterator[str]:
            """What takes the place of each prefix in turn."""
            place = 0
            while place < len(text):
                length = kept.longest(text, place)
                found = text[place : place + length]
                if not length and rules is not None:
                    length, found = rules.longest(text, place)
                if not length:
                    length, found = 1, text[place]
                yield found
                place += length

        def normalize(text: str, space_after: bool) -> str:
            parts: list[str] = []
            begun = not self.remove_extra
            after_space = self.remove_extra
            for part in prefixes(text):
                if not begun and part == " ":
                    continue
                begun = True
                part = part.lstrip(" ") if after_space else part
                if part:
                    parts.append(part)
                    after_space = self.remove_extra and part.endswith(" ")
            if not begun or not text:
                return ""
            result = "".join(parts)
            result = result.replace(" ", SPACE) if self.escape else result
            if self.dummy_prefix and not space_after:
                result = mark + result
            if self.remove_extra:
                result = result.rstrip(mark)
            return result + mark if self.dummy_prefix and space_after else result

        return normalize


class _Charsmap:
    """The rules of a precompiled table: the longest prefix that has one."""

    def __init__(self, table: bytes) -> None:
        size = int.from_bytes(table[:4], "little")
        if len(table) <= 4 or size >= len(table) - 4 or size % 4 or size < 1024:
            raise TextError("tokenizer.model cannot be read: its table of characters is damaged", "download it again")
        self._units = struct.unpack_from(f"<{size // 4}I", table, 4)
        self._texts = table[4 + size :]
        self._none: set[str] = set()  # characters that begin no rule

    def longest(self, text: str, place: int) -> tuple[int, str]:
        """How many characters the longest rule takes, and what it gives; 0 if there is none."""
        if text[place] in self._none:
            return 0, ""
        units, node = self._units, 0
        node ^= self._offset(units[0])
        best = 0, ""
        for count in range(1, len(text) - place + 1):
            for byte in text[place + count - 1].encode():
                node ^= byte
                if node >= len(units) or units[node] & 0x800000FF != byte:
                    if count == 1:
                        self._none.add(text[place])
                    return best
                unit = units[node]
                node ^= self._offset(unit)
            if unit >> 8 & 1 and node < len(units):
                best = count, self._text(units[node] & 0x7FFFFFFF)
        return best

    @staticmethod
    def _offset(unit: int) -> int:
        return unit >> 10 << ((unit & 512) >> 6)

    def _text(self, start: int) -> str:
        end = self._texts.find(b"\0", start)
        return self._texts[start : end if end >= 0 else None].decode(errors="replace")


class _Prefixes:
    """The longest of some strings that a text goes on with."""

    def __init__(self, strings: Set[str]) -> None:
        self._strings = strings
        self._lengths: dict[str, list[int]] = {}  # by first character, the longest first
        for string in sorted(strings, key=len, reverse=True):
            lengths = self._lengths.setdefault(string[0], [])
            if not lengths or lengths[-1] != len(string):
                lengths.append(len(string))

    def longest(self, text: str, place: int) -> int:
        return next((n for n in self._lengths.get(text[place], ()) if text[place : place + n] in self._strings), 0)

    def lengths(self, character: str) -> list[int]:
        return self._lengths.get(character, [])


class Segmenter:
    """Cuts normalised text into pieces, the same as sentencepiece's own encoders."""

    def __init__(
        self, scores: Mapping[str, float], frozen: Set[str], unused: Set[str], reserved: Set[str], unigram: bool
    ) -> None:
        self._scores = scores
        self._whole = _Prefixes(frozen)
        self.frozen = frozen
        self._unused = unused
        self._known = scores.keys() | reserved
        self._cut = self._likeliest if unigram else self._merge
        if unigram:
            normal = [score for piece, score in scores.items() if piece not in unused and piece not in frozen]
            self._all = _Prefixes(scores.keys() - unused)
            self._unknown = _float32(min([_LARGEST, *normal]) - _UNKNOWN_PENALTY)
            best = max(normal, default=-_LARGEST)
            self._weights = (
                {**scores, **{piece: len(piece.encode()) * best - 0.1 for piece in frozen}} if frozen else scores
            )
        # Where no piece goes on into the next word, words are cut one by one, and those that come again are known.
        self._by_words = not unigram and not any(re.search(f"[^{SPACE}]{SPACE}", piece) for piece in scores)
        self._cache: dict[str, Pieces] = {}

    def cut(self, text: str) -> Pieces:
        """The pieces, joined the text; each with whether it is in the vocabulary."""
        if not self._by_words:
            return self._cut(text) if text else []
        pieces: Pieces = []
        for word in re.findall(f"{SPACE}*[^{SPACE}]+|{SPACE}+", text):
            found = self._cache.get(word)
            if found is None:
                found = self._cut(word)
                if len(self._cache) < _MOST_CACHED and len(word) < _LONGEST_CACHED:
                    self._cache[word] = found
            pieces += found
        return pieces

    def _merge(self, text: str) -> Pieces:
        """Pairs of neighbours become one piece, the pair with the highest score first, of equal ones the leftmost."""
        symbols: list[str] = []
        frozen: list[bool] = []
        place = 0
        while place < len(text):
            length = self._whole.longest(text, place)
            symbols.append(text[place : place + (length or 1)])
            frozen.append(length > 0)
            place += length or 1
        before, after = list(range(-1, len(symbols) - 1)), [*range(1, len(symbols)), -1]
        agenda: list[tuple[float, int, int, int]] = []
        halves: dict[str, tuple[str, str]] = {}  # of unused pieces, which are taken apart again

        def consider(left: int, right: int) -> None:
            if left < 0 or right < 0 or frozen[left] or frozen[right]:
                return
            piece = symbols[left] + symbols[right]
            score = self._scores.get(piece)
            if score is None:
                return
            heapq.heappush(agenda, (-score, left, right, len(piece)))
            if piece in self._unused:
                halves[piece] = symbols[left], symbols[right]

        for left in range(len(symbols) - 1):
            consider(left, left + 1)
        while agenda:
            _, left, right, length = heapq.heappop(agenda)
            if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != length:
                continue
            symbols[left] += symbols[right]
            symbols[right] = ""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            consider(before[left], left)
            consider(left, after[left])
        pieces: Pieces = []
        waiting = [symbol for symbol in reversed(symbols) if symbol]
        while waiting:
            piece = waiting.pop()
            if piece in halves:
                waiting += reversed(halves[piece])
            else:
                pieces.append((piece, piece in self._known))
        return pieces

    def _likeliest(self, text: str) -> Pieces:
        """The cut whose pieces have the highest sum of scores, in the single precision of the original."""
        best: list[tuple[float, int, bool] | None] = [None] * (len(text) + 1)  # score, start, whether known
        best[0] = 0.0, 0, True

        def offer(start: int, end: int, score: float, known: bool) -> None:
            there = best[end]
            if there is None or score > there[0]:
                best[end] = _float32(score), start, known

        for start in range(len(text)):
            here = best[start]
            assert here is not None, "every character is a piece, known or not"
            single = False
            for length in reversed(self._all.lengths(text[start])):
                piece = text[start : start + length]
                if len(piece) < length:
                    break
                if piece not in self._scores or piece in self._unused:
                    continue
                offer(start, start + length, self._weights[piece] + here[0], known=True)
                single = single or length == 1
            if not single:
                offer(start, start + 1, _float32(self._unknown + here[0]), known=False)
        pieces: Pieces = []
        end = len(text)
        while end > 0:
            found = best[end]
            assert found is not None
            pieces.append((text[found[1] : end], found[2]))
            end = found[1]
        return pieces[::-1]


def _float32(number: float) -> float:
    """The nearest number of single precision."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", number))[0])
    except OverflowError:
        return _LARGEST if number > 0 else -_LARGEST
