"""Copies on a stream of their own give what copies made at once give. The streams are fakes, as late as they may be."""

from __future__ import annotations

import itertools
import random
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from moecli.experts.arena import Arena
from moecli.experts.copies import Copies, StreamCopies, copies_for

CARD = torch.device("cuda", 0)
SIZE, SLOTS, HOSTS = 8, 3, 4


class Stream:
    """Work in the order it was given, done once somebody waits for it."""

    def __init__(self, device: torch.device = CARD) -> None:
        self.work: deque[Callable[[], object]] = deque()
        self.given = self.done = 0
        STREAMS.add(self)

    def give(self, work: Callable[[], object]) -> None:
        self.work.append(work)
        self.given += 1

    def run(self, until: int | None = None) -> None:
        while self.work and (until is None or self.done < until):
            self.done += 1
            self.work.popleft()()

    def record_event(self) -> Event:
        return Event(self, self.given)

    def wait_event(self, event: Event) -> None:
        self.give(event.synchronize)

    def synchronize(self) -> None:
        self.run()


class Event:
    """What a stream had been given by then."""

    def __init__(self, stream: Stream, place: int) -> None:
        self._stream, self._place = stream, place

    def synchronize(self) -> None:
        self._stream.run(self._place)


STREAMS: weakref.WeakSet[Stream] = weakref.WeakSet()


class Card(TorchFunctionMode):
    """`current` is the stream that work is given to: computing, or copies that block nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.computing = self.current = Stream()

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def synchronize(self, device: torch.device) -> None:
        assert device == CARD
        for each in STREAMS:
            each.run()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.copy_ and kwargs.pop("non_blocking", False):
            self.current.give(lambda: func(*args))
            return args[0]
        return func(*args, **kwargs)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    STREAMS.clear()
    found = Card()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", found.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", {CARD: found.computing}.__getitem__)
    monkeypatch.setattr(torch.cuda, "synchronize", found.synchronize)
    with found:
        yield found


def copied(copies: Copies, slots: Arena, give: Callable[[Callable[[], object]], object], seed: int) -> list[list[int]]:
    """A program by chance of what a store does with its slots: what is computed, seen in RAM, and there at the end."""
    slots._data.zero_()
    chance, computed, seen = random.Random(seed), list[int](), list[int]()
    hosts = torch.arange(HOSTS * SIZE, dtype=torch.uint8).view(HOSTS, SIZE).clone()
    for number in range(40):
        slot, host, size = chance.randrange(SLOTS), chance.randrange(HOSTS), chance.randint(1, SIZE)
        match chance.choice(("upload", "upload", "parts", "download", "compute", "compute", "read", "write")):
            case "upload":
                copies.upload(slot, hosts[host, :size], host)
            case "parts":
                part, cuts = torch.empty(SIZE, dtype=torch.uint8), sorted({0, size, SIZE})

                def pieces(part: Tensor = part, cuts: list[int] = cuts, number: int = number) -> Any:
                    for start, end in itertools.pairwise(cuts):
                        part[: end - start] = 100 + number + start  # the buffer of the one before
                        yield start, part[: end - start]

                copies.upload_parts(slot, pieces())
            case "download":
                copies.download(slot, hosts[host, :size], host)
            case "compute":
                data = copies.ready(slot)
                give(lambda data=data: computed.extend(data.tolist()))
                copies.used(slot)
            case "read":
                copies.wait(host)
                seen.extend(hosts[host].tolist())
            case "write":
                copies.wait(host)
                hosts[host] = number
    copies.synchronize()
    return [computed, seen, slots._data.flatten().tolist(), hosts.flatten().tolist()]


@pytest.mark.parametrize("seed", range(30))
def test_what_is_computed_is_as_if_copies_took_no_time(seed: int, card: Card) -> None:
    """Whichever stream is the later one: the copies, or what is computed."""
    slots = Arena(SLOTS, SIZE)
    expected = copied(Copies(slots), slots, lambda work: work(), seed)
    late = StreamCopies(slots, CARD)
    assert copied(late, slots, card.computing.give, seed) == expected
    early = StreamCopies(slots, CARD)
    give = early._stream.give
    early._stream.give = lambda work: (give(work), early._stream.run())  # type: ignore[method-assign]
    assert copied(early, slots, card.computing.give, seed) == expected


def test_copies_go_on_beside_the_computation(card: Card) -> None:
    """Nothing waits that need not: a copy is done when the computation asks for its slot, and not before."""
    slots, source = Arena(2, SIZE), torch.full((SIZE,), 7, dtype=torch.uint8)
    slots._data.zero_()
    copies = StreamCopies(slots, CARD)
    copies.upload(1, source, 0)
    assert slots.slot(1).tolist() == [0] * SIZE
    copies.wait(3)  # of another place in RAM
    copies.ready(0)
    card.computing.run()
    assert slots.slot(1).tolist() == [0] * SIZE
    copies.ready(1)
    card.computing.run()
    assert slots.slot(1).tolist() == [7] * SIZE
    copies.download(1, target := torch.zeros(SIZE, dtype=torch.uint8), 0)
    assert target.tolist() == [0] * SIZE
    copies.wait(0)
    assert target.tolist() == [7] * SIZE


def test_what_is_on_its_way_ends_before_the_slots_do(card: Card) -> None:
    """But not when the program ends: CUDA may be gone by then."""
    slots = Arena(1, SIZE)
    slots._data.zero_()
    copies = StreamCopies(slots, CARD)
    (end,) = [each for each in list(weakref.finalize._registry) if each.peek() and each.peek()[0] is copies]  # type: ignore[attr-defined]
    assert not end.atexit
    copies.upload(0, torch.ones(SIZE, dtype=torch.uint8), 0)
    del copies
    assert slots.slot(0).tolist() == [1] * SIZE


def test_streams_are_those_of_a_cuda_device_that_is_there(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Arena(1, SIZE)
    assert type(copies_for(slots, CARD)) is StreamCopies
    assert type(copies_for(slots, torch.device("cpu"))) is type(copies_for(slots, torch.device("xpu"))) is Copies
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert type(copies_for(slots, CARD)) is Copies
