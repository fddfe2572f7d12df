"""Streams of work as CUDA has them, done late: when somebody waits for it, and now and then by chance."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest
import torch

from moecli.experts import copies


class Streams:
    """All streams of one device; `computing` is that of its operations, and `current` where work is given to.

    `computing` and `copying`: how likely these streams do a thing they may whenever more is given: 0 is as late as may
    be, 1 at once.
    """

    def __init__(self, computing: float = 0.0, copying: float = 0.0, seed: int = 0) -> None:
        self._chance, self._computing, self._copying = random.Random(seed), computing, copying
        self._all: list[Stream] = []
        self.computing = self.current = Stream(self)
        self.waits: set[str] = set()  # those of `Copies`: which of its functions waited for whom
        self.dropped = ""  # the one of them that is left out

    def add(self, stream: Stream) -> None:
        self._all.append(stream)

    def some(self) -> None:
        """Do some of what is due, by chance."""
        for stream in self._all:
            eager = self._computing if stream is self.computing else self._copying
            while stream.may_go_on and self._chance.random() < eager:
                stream.step()

    def heeds(self) -> bool:
        """Whether a wait that begins now is made."""
        if name := _wait_of_copies(sys._getframe(2)):
            self.waits.add(name)
        return not name or name != self.dropped

    def synchronize(self, device: object = None) -> None:
        if self.heeds():
            for stream in self._all:
                stream.finish()

    @contextmanager
    def into(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def as_cuda(self) -> Iterator[None]:
        """Whoever asks torch for streams gets these."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "Stream", lambda device: Stream(self))
            patch.setattr(torch.cuda, "stream", self.into)
            patch.setattr(torch.cuda, "current_stream", lambda device: self.current)
            patch.setattr(torch.cuda, "synchronize", self.synchronize)
            yield


class Stream:
    """Work in the order in which it was given. An event in it holds up what follows."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._work: deque[Callable[[], object] | Event] = deque()
        self._given = self.done = 0
        streams.add(self)

    def give(self, work: Callable[[], object] | Event) -> None:
        self._work.append(work)
        self._given += 1
        self._streams.some()

    @property
    def may_go_on(self) -> bool:
        """Whether there is work that waits for nobody."""
        return bool(self._work) and not (isinstance(self._work[0], Event) and not self._work[0].passed)

    def step(self) -> None:
        """Do one thing, or what it waits for."""
        if not self._work:
            return
        first = self._work[0]
        if isinstance(first, Event) and not first.passed:
            first.stream.step()
            return
        self._work.popleft()
        self.done += 1
        if not isinstance(first, Event):
            first()

    def finish(self) -> None:
        while self._work:
            self.step()

    def record_event(self) -> Event:
        return Event(self, self._given)

    def wait_event(self, event: Event) -> None:
        if self._streams.heeds():
            self.give(event)

    def synchronize(self) -> None:
        if self._streams.heeds():
            self.finish()


class Event:
    """All that its stream had been given by then."""

    def __init__(self, stream: Stream, place: int) -> None:
        self.stream, self._place = stream, place

    @property
    def passed(self) -> bool:
        return self.stream.done >= self._place

    def synchronize(self) -> None:
        if self.stream._streams.heeds():
            while not self.passed:
                self.stream.step()


def _wait_of_copies(frame: FrameType | None) -> str:
    """Such as "_in_ram: wait", for a wait made by `moecli.experts.copies`: who called which of its functions."""
    inside = ""
    while frame is not None and (frame.f_code.co_filename == copies.__file__ or frame.f_code.co_name[0] == "<"):
        if frame.f_code.co_name[0] != "<":
            inside = inside or frame.f_code.co_name
            outermost = frame.f_code.co_name
        frame = frame.f_back
    if not inside or frame is None:
        return ""
    return f"{frame.f_code.co_name}: {outermost}" + (f", {inside}" if inside != outermost else "")
