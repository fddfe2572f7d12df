"""Pickles read as data: the opcodes that tensors are written with, run on a stack of inert values.

Nothing is imported and nothing is called. A global is its name, held against the few that the caller allows; a call is
a record of what would have been called with what; bytes are only located. Whatever else a pickle may hold is refused.
Opcodes: CPython's Lib/pickletools.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NoReturn

from moecli.checkpoint.stored import Source
from moecli.errors import CheckpointError, printable

ORDERED_DICT = "collections.OrderedDict"
_MOST_OPCODES = 300_000  # some 9,000 tensors, and a fraction of a second
_MOST_BYTES = 2**24  # of text and opcodes; payloads do not count
_LONGEST_TEXT = 2**12
_DEEPEST = 64  # marks on the stack
_WIDEST = 2**13  # values on the stack: pickle writes items by the thousand
_CHUNK = 2**16


@dataclass(frozen=True, slots=True)
class Global:
    """A name that a pickle would have imported."""

    name: str


@dataclass(slots=True)
class Call:
    """What a pickle would have called, and the state it would have set on the result."""

    name: str
    args: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True, slots=True)
class Persistent:
    """What a pickle refers to and does not hold: a storage of torch."""

    about: Any


@dataclass(frozen=True, slots=True)
class Payload:
    """Bytes inside a pickle, by their place."""

    offset: int
    size: int


def refused(where: str, problem: str) -> CheckpointError:
    """Why a pickle is not taken for weights."""
    return CheckpointError(f"{where} is not read: {problem}", "nothing of it was run; look for another copy of it")


def read_pickle(source: Source, begin: int, end: int, allowed: Collection[str], where: str, chunk: int = _CHUNK) -> Any:
    """What the pickle between two offsets of `source` describes. CheckpointError, which says `where`, for any other.

    Made of None, bool, int, float, str, tuple, list, dict, and the records above. `allowed` are names as
    "collections.OrderedDict", whose calls without arguments are dicts here. Never recurses; a value may hold itself.
    `source` is asked for `chunk` bytes at least.
    """
    return _Machine(source, begin, end, allowed, where, chunk).run()


class _Mark:
    """Where a tuple, or the items of a list or dict, begin on the stack."""


_MARK = _Mark()


class _Machine:
    def __init__(self, source: Source, begin: int, end: int, allowed: Collection[str], where: str, size: int) -> None:
        self._source, self._at, self._end, self._size = source, begin, end, size
        self._allowed, self._where = allowed, where
        self._chunk, self._next = b"", 0  # bytes that were read, and how far they are used
        self._read = 0
        self._stack: list[Any] = []
        self._marks = 0
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        opcodes = 0
        while (code := self._byte()) != _STOP:
            step = _STEPS.get(code)
            if step is None:
                self._refuse(f"it holds the opcode 0x{code:02x}, which no tensor is written with")
            step(self)
            if len(self._stack) > _WIDEST:
                self._refuse("it holds too many values at once")
            if (opcodes := opcodes + 1) > _MOST_OPCODES:
                self._refuse(f"it holds more than {_MOST_OPCODES:,} opcodes")
        if len(self._stack) != 1 or self._stack[0] is _MARK or self.position != self._end:
            self._refuse("it does not end where it says")
        return self._stack[0]

    @property
    def position(self) -> int:
        return self._at - len(self._chunk) + self._next

    def _refuse(self, problem: str) -> NoReturn:
        raise refused(self._where, problem)

    def _take(self, size: int) -> bytes:
        """The next bytes; what lies behind the end does not exist."""
        end = self._next + size
        if end > len(self._chunk):
            wanted = size - (len(self._chunk) - self._next)
            more = self._source(self._at, min(max(wanted, self._size), self._end - self._at))
            self._read += len(more)
            if len(more) < wanted or self._read > _MOST_BYTES:
                self._refuse("it is cut short" if len(more) < wanted else f"it is longer than {_MOST_BYTES} bytes")
            self._at += len(more)
            self._chunk, self._next, end = self._chunk[self._next :] + more, 0, size
        data = self._chunk[self._next : end]
        self._next = end
        return data

    def _byte(self) -> int:
        if self._next == len(self._chunk):
            return self._take(1)[0]
        self._next += 1
        return self._chunk[self._next - 1]

    def _number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self._take(size), "little", signed=signed)

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            self._refuse("it takes a value that is not there")
        return self._stack.pop()

    def _top(self) -> Any:
        self._push(value := self._pop())
        return value

    def _to_mark(self) -> list[Any]:
        """The values above the last mark, which goes with them."""
        if not self._marks:
            self._refuse("it goes back to a mark that is not there")
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
        values = self._stack[place + 1 :]
        del self._stack[place:]
        self._marks -= 1
        return values

    # one method for each kind of opcode

    def _protocol(self) -> None:
        if (version := self._byte()) not in (2, 3, 4, 5):
            self._refuse(f"it is of protocol {version}")

    def _frame(self) -> None:
        self._take(8)  # how much comes at once: of no meaning where nothing is taken on trust

    def _mark(self) -> None:
        self._marks += 1
        if self._marks > _DEEPEST:
            self._refuse("it is nested too deeply")
        self._push(_MARK)

    def _text(self, width: int) -> None:
        size = self._number(width)
        if size > _LONGEST_TEXT:
            self._refuse(f"it holds a text of {size} bytes")
        try:
            self._push(self._take(size).decode())
        except UnicodeDecodeError:
            self._refuse("it holds a text that is not UTF-8")

    def _payload(self, width: int) -> None:
        size = self._number(width)
        if size > self._end - self.position:
            self._refuse("it is cut short")
        self._push(Payload(self.position, size))
        if self._next + size <= len(self._chunk):
            self._next += size
        else:
            self._at, self._chunk, self._next = self.position + size, b"", 0

    def _long(self) -> None:
        size = self._byte()
        if size > 8:
            self._refuse(f"it holds a number of {size} bytes")
        self._push(int.from_bytes(self._take(size), "little", signed=True))

    def _float(self) -> None:
        self._push(struct.unpack(">d", self._take(8))[0])

    def _pair(self) -> None:
        second, first = self._pop(), self._pop()
        self._push((first, second))

    def _triple(self) -> None:
        third, second, first = self._pop(), self._pop(), self._pop()
        self._push((first, second, third))

    def _marked_tuple(self) -> None:
        self._push(tuple(self._to_mark()))

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            self._refuse("it appends to what is no list")
        target.extend(values)

    def _set_items(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not dict or len(values) % 2:
            self._refuse("it sets items of what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, int) or key in target:
                self._refuse("a key of a dict is there twice, or is neither text nor number")
            target[key] = value

    def _remember(self, place: int) -> None:
        self._memo[place] = self._top()

    def _recall(self, place: int) -> None:
        if place not in self._memo:
            self._refuse("it recalls a value that it has not remembered")
        self._push(self._memo[place])

    def _line(self) -> str:
        line = bytearray()
        while (byte := self._take(1)) != b"\n":
            line += byte
            if len(line) > _LONGEST_TEXT:
                self._refuse("it holds a name without end")
        return line.decode("ascii", "replace")

    def _global(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            self._refuse("it names something by what is no text")
        if (full := f"{module}.{name}") not in self._allowed:
            self._refuse(f"it names {printable(full, 60)}, which no tensor is written with")
        self._push(Global(full))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._global(module, name)

    def _call(self) -> None:
        args, function = self._pop(), self._pop()
        if type(function) is not Global or type(args) is not tuple:
            self._refuse("it calls what is no name")
        if function.name == ORDERED_DICT and args:
            self._refuse("it makes a dict of arguments")
        self._push({} if function.name == ORDERED_DICT else Call(function.name, args))

    def _build(self) -> None:
        """A dict's attributes (torch's `_metadata`) say nothing of tensors."""
        state, target = self._pop(), self._top()
        if type(target) is Call and target.state is None:
            target.state = state
        elif type(target) is not dict:
            self._refuse("it sets the state of what has none")

    def _persistent(self) -> None:
        """No writer names a storage by another one: a tower of them is refused at its second stone."""
        if type(about := self._pop()) is Persistent:
            self._refuse("it refers to what is itself a reference")
        self._push(Persistent(about))


_Step = Callable[[_Machine], None]
_STOP = ord(".")
_STEPS: dict[int, _Step] = {
    code[0]: step
    for code, step in {
        b"\x80": _Machine._protocol,
        b"\x95": _Machine._frame,
        b"(": _Machine._mark,
        b"N": lambda m: m._push(None),
        b"\x88": lambda m: m._push(True),
        b"\x89": lambda m: m._push(False),
        b"K": lambda m: m._push(m._byte()),
        b"M": lambda m: m._push(m._number(2)),
        b"J": lambda m: m._push(m._number(4, True)),
        b"\x8a": _Machine._long,
        b"G": _Machine._float,
        b"\x8c": lambda m: m._text(1),
        b"X": lambda m: m._text(4),
        b"C": lambda m: m._payload(1),
        b"B": lambda m: m._payload(4),
        b"\x8e": lambda m: m._payload(8),
        b")": lambda m: m._push(()),
        b"\x85": lambda m: m._push((m._pop(),)),
        b"\x86": _Machine._pair,
        b"\x87": _Machine._triple,
        b"t": _Machine._marked_tuple,
        b"]": lambda m: m._push([]),
        b"a": lambda m: m._append([m._pop()]),
        b"e": lambda m: m._append(m._to_mark()),
        b"}": lambda m: m._push({}),
        b"s": lambda m: m._set_items([m._pop(), m._pop()][::-1]),
        b"u": lambda m: m._set_items(m._to_mark()),
        b"q": lambda m: m._remember(m._byte()),
        b"r": lambda m: m._remember(m._number(4)),
        b"\x94": lambda m: m._remember(len(m._memo)),
        b"h": lambda m: m._recall(m._byte()),
        b"j": lambda m: m._recall(m._number(4)),
        b"c": lambda m: m._global(m._line(), m._line()),
        b"\x93": _Machine._stack_global,
        b"R": _Machine._call,
        b"\x81": _Machine._call,
        b"b": _Machine._build,
        b"Q": _Machine._persistent,
    }.items()
}
