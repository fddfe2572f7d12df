"""Documents and bytes changed by chance, as damage and malice change them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

# What a reader of JSON did not think of: other types, other sizes, no number, commands for a terminal, half characters.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e-9, 1e308, float("inf"), float("-inf"), float("nan"), 2**31, 2**53,
    2**63, 2**64, 10**18, 10**30, "", " ", "0", "-1", "1e400", "nan", "none", "x" * 5000, "\x1b]0;title\x07",
    "\x1b[31mred\x1b[0m", "\x9b2J", "\u202eltr", "\ud800", "\0", "a\nerror: b", "../../etc/passwd", "/dev/zero",
    "[bold]x[/bold]", "%s%n{0}", "\ufeff", [], {}, [[]], [None], {"": None}, [1, 2, 3], {"\x1b[2J": "\x1b[2J"},
)  # fmt: skip
_NAMES = (*(value for value in VALUES if isinstance(value, str)), "model_type", "rope_scaling", "text_config")
_RAW = (
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"1e999", b"NaN", b"\x1b[2J",
    b"\xed\xa0\x80", b"\xc0\xaf", b"\n" * 100, b",", b"}", b"null", b'"', b"\r", b"\\u0000", b"\\ud800",
)  # fmt: skip


class Mutator:
    """One case's chance: the same seed makes the same changes."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)

    def some(self, most: int = 4) -> int:
        """How many changes to make: one most often."""
        return min(most, 1 + int(self.random.expovariate(0.9)))

    def document(self, value: Any) -> Any:
        """A copy of a JSON value with a few nodes replaced, removed, renamed, moved or added."""
        root = [copy.deepcopy(value)]
        for _ in range(self.some()):
            places = list(_places(root))
            where, key = self.random.choice(places)
            self.random.choice(_CHANGES)(self, root, where, key)
        return root[0]

    def encoded(self, value: Any) -> bytes:
        """The changed document as a file: now and then its bytes are damaged as well."""
        text = json.dumps(self.document(value), ensure_ascii=self.random.random() < 0.5)
        if self.random.random() < 0.03:
            return text.encode(self.random.choice(["utf-16", "utf-32", "utf-8-sig"]), "surrogatepass")
        content = text.encode("utf-8", "surrogatepass")
        return self.damaged(content) if self.random.random() < 0.15 else content

    def damaged(self, content: bytes) -> bytes:
        """The same bytes, cut, flipped, repeated, or with others between."""
        for _ in range(self.some()):
            at, end = sorted(self.random.randrange(len(content) + 1) for _ in range(2))
            match self.random.randrange(6):
                case 0:
                    content = content[:at]
                case 1 if content:
                    place = min(at, len(content) - 1)
                    flipped = content[place] ^ 1 << self.random.randrange(8)
                    content = content[:place] + bytes([flipped]) + content[place + 1 :]
                case 2:
                    content = content[:at] + self.random.choice(_RAW) + content[at:]
                case 3:
                    content = content[:at] + content[end:]
                case 4:
                    content = content[:end] + content[at : min(end, at + 4096)] + content[end:]
                case _:
                    content = content[:at] + self.random.randbytes(self.random.randrange(1, 20)) + content[at:]
        return content

    def nudged(self, content: bytes) -> bytes:
        """The same number of bytes, a few of them others: what a byte means in one place it is given in another."""
        changed = bytearray(content)
        for _ in range(self.some() if changed else 0):
            changed[self.random.randrange(len(changed))] = self.random.choice([self.random.choice(content), 0, 255])
        return bytes(changed)

    def value(self) -> Any:
        return copy.deepcopy(self.random.choice(VALUES))

    def name(self) -> str:
        return self.random.choice(_NAMES)


def _places(root: Any) -> Any:
    """Every (container, key) below `root`."""
    waiting = [root]
    while waiting:
        where = waiting.pop()
        for key, value in where.items() if isinstance(where, dict) else enumerate(where):
            yield where, key
            if isinstance(value, dict | list):
                waiting.append(value)


def _replace(mutator: Mutator, root: Any, where: Any, key: Any) -> None:
    where[key] = mutator.value()


def _scale(mutator: Mutator, root: Any, where: Any, key: Any) -> None:
    """Another number of the same kind, so that what is read first lets it through."""
    if isinstance(where[key], int | float) and not isinstance(where[key], bool):
        factor = mutator.random.choice([-1, 0, 0.5, 2, 3, 1000, 10**6, 10**12])
        try:
            where[key] = type(where[key])(where[key] * factor)
        except (OverflowError, ValueError):
            where[key] = factor
    else:
        _replace(mutator, root, where, key)


def _remove(mutator: Mutator, root: Any, where: Any, key: Any) -> None:
    if where is not root:
        del where[key]


def _rename(mutator: Mutator, root: Any, where: Any, key: Any) -> None:
    if isinstance(where, dict):
        where[mutator.name()] = where.pop(key)
    else:
        where.insert(key, mutator.value())


def _swap(mutator: Mutator, root: Any, where: Any, key: Any) -> None:
    other, at = mutator.random.choice(list(_places(root)))
    where[key] = copy.deepcopy(other[at])


def _add(mutator: Mutator, root: Any, where: Any, key: Any) -> None:
    if isinstance(where, dict):
        where[mutator.name()] = mutator.value()
    else:
        where.append(mutator.value()) if where is not root else _replace(mutator, root, where, key)


def _wrap(mutator: Mutator, root: Any, where: Any, key: Any) -> None:
    where[key] = mutator.random.choice([lambda value: [value], lambda value: {"x": value}, str])(where[key])


def _deepen(mutator: Mutator, root: Any, where: Any, key: Any) -> None:
    for _ in range(200):
        where[key] = [where[key]]


_CHANGES: tuple[Callable[[Mutator, Any, Any, Any], None], ...] = (
    _replace, _replace, _scale, _scale, _scale, _remove, _remove, _rename, _swap, _add, _add, _wrap, _deepen,
)  # fmt: skip
