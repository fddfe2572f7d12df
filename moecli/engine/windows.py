"""What of a text is read together and which of its tokens are scored: the windows that a perplexity is of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from moecli.errors import MoecliError, UsageError

LONGEST = 2048  # tokens of a window, unless asked for others


@dataclass(frozen=True, slots=True)
class Window:
    """Ids that are read from an empty cache; those from `first` on are scored, each given all before it."""

    ids: tuple[int, ...]
    first: int = 1

    @property
    def scored(self) -> int:
        """How many of them are scored."""
        return len(self.ids) - self.first


@dataclass(frozen=True, slots=True)
class Cut:
    """How a text is cut: tokens of a window and from its begin to the next one's, and what stands before each (BOS)."""

    size: int
    stride: int
    before: tuple[int, ...] = ()


def how_to_cut(context: int, size: int | None, stride: int | None, before: Sequence[int]) -> Cut:
    """Windows as asked for, else of LONGEST tokens or the model's `context`, side by side. UsageError out of range."""
    size = size or min(LONGEST, context)
    room = size - len(before)
    if room < 2:
        raise UsageError(f"--ctx {size} has no room for a token and one before it", "--ctx 512 is usual")
    if stride is not None and stride > room:
        raise UsageError(f"--stride {stride} would leave out text", f"a window has {room} tokens of it: --ctx")
    return Cut(size, stride or room, tuple(before))


def windows(ids: Sequence[int], cut: Cut) -> list[Window]:
    """The windows of a text whose `ids` have nothing before them yet.

    Each window is `cut.before` and what follows from its begin on. A token is scored once, in the first window that
    holds it; with nothing before it there, it is scored nowhere.
    """
    room = cut.size - len(cut.before)
    found, end = list[Window](), 0
    for start in range(0, len(ids), cut.stride):
        window = Window((*cut.before, *ids[start : start + room]), max(1, end - start + len(cut.before)))
        if window.scored > 0:
            found.append(window)
        end = start + room
        if end >= len(ids):
            break
    return found


def pieces(ids: Sequence[int], longest: int) -> list[Window]:
    """A prompt as it is, all but its first token scored; a longer one in windows side by side."""
    parts = (tuple(ids[start : start + longest]) for start in range(0, len(ids), longest))
    return [Window(part) for part in parts if len(part) > 1]


def given(text: str, name: str, vocabulary: int) -> list[Window] | None:
    """The windows in JSONL of lists of token ids, or of objects with `token_ids`; None for any other text.

    They are read as they are, all but the first id scored. MoecliError for ids that the model does not have.
    """
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines or _token_ids(lines[0][1]) is None:
        return None
    found = []
    for number, line in lines:
        if (ids := _token_ids(line)) is None:
            raise MoecliError(f"line {number} of {name} is no list of token ids", "a window a line: [1, 2, 3]")
        if wrong := [each for each in ids if not 0 <= each < vocabulary]:
            raise MoecliError(
                f"line {number} of {name} has id {wrong[0]}, and the model knows 0 to {vocabulary - 1}",
                "its windows were made with another tokenizer",
            )
        if len(ids) > 1:
            found.append(Window(tuple(ids)))
    return found


def _token_ids(line: str) -> list[int] | None:
    """The whole numbers in a line of JSON; None where it has others, or none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    ids = value.get("token_ids") if isinstance(value, dict) else value
    return ids if isinstance(ids, list) and ids and all(type(each) is int for each in ids) else None
