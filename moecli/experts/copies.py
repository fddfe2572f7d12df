"""Expert records on their way between host memory and device slots, beside the computation and never under it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor

from moecli.experts.arena import Arena

Parts = Iterable[tuple[int, Tensor]]  # bytes in host memory, and where in the slot they go


class Copies:
    """Copies made at once, for a device without streams. They may be under way in a subclass."""

    def __init__(self, slots: Arena) -> None:
        self._slots = slots

    def upload(self, slot: int, source: Tensor, host: int) -> None:
        """Begin to fill a device slot from the host slot `host`, whose bytes are `source`."""
        self._slots.slot(slot)[: len(source)].copy_(source)

    def upload_parts(self, slot: int, parts: Parts) -> None:
        """Fill a device slot piece by piece. Each piece has been read when the next one is asked for."""
        for offset, source in parts:
            self._slots.slot(slot)[offset : offset + len(source)].copy_(source)

    def download(self, slot: int, target: Tensor, host: int) -> None:
        """Begin to copy a device slot to the host slot `host`, whose bytes are `target`."""
        target.copy_(self._slots.slot(slot)[: len(target)])

    def ready(self, slot: int) -> Tensor:
        """The bytes of a device slot; what is computed with them from now on waits for those on their way."""
        return self._slots.slot(slot)

    def used(self, slot: int) -> None:
        """What computes with a device slot has been started: later copies into it wait for that."""

    def follow(self) -> None:
        """Let later copies wait for all computation that has been started, whichever slots it is with."""

    def wait(self, host: int) -> None:
        """Wait until no copy reads or writes a host slot."""

    def synchronize(self) -> None:
        """Wait for every copy and computation."""


class StreamCopies(Copies):
    """Copies on a CUDA stream of their own, with one event per slot in each direction."""

    def __init__(self, slots: Arena, device: torch.device) -> None:
        super().__init__(slots)
        self._device = device
        self._stream = torch.cuda.Stream(device)
        weakref.finalize(self, self._stream.synchronize).atexit = False  # before others may get the slots' memory
        self._arrived: dict[int, torch.cuda.Event] = {}  # by device slot: its copy
        self._computed: dict[int, torch.cuda.Event] = {}  # by device slot: its last use
        self._busy: dict[int, torch.cuda.Event] = {}  # by host slot: the last copy that touches it

    def upload(self, slot: int, source: Tensor, host: int) -> None:
        self._begin(slot, source)
        self._busy[host] = self._arrived[slot]

    def upload_parts(self, slot: int, parts: Parts) -> None:
        for offset, source in parts:
            self._begin(slot, source, offset)
            self._arrived[slot].synchronize()

    def download(self, slot: int, target: Tensor, host: int) -> None:
        with torch.cuda.stream(self._stream):
            target.copy_(self._slots.slot(slot)[: len(target)], non_blocking=True)
            self._busy[host] = self._stream.record_event()

    def ready(self, slot: int) -> Tensor:
        if event := self._arrived.pop(slot, None):
            torch.cuda.current_stream(self._device).wait_event(event)
        return self._slots.slot(slot)

    def used(self, slot: int) -> None:
        self._computed[slot] = torch.cuda.current_stream(self._device).record_event()

    def follow(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def wait(self, host: int) -> None:
        if event := self._busy.pop(host, None):
            event.synchronize()

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)

    def _begin(self, slot: int, source: Tensor, offset: int = 0) -> None:
        if event := self._computed.pop(slot, None):
            self._stream.wait_event(event)
        with torch.cuda.stream(self._stream):
            self._slots.slot(slot)[offset : offset + len(source)].copy_(source, non_blocking=True)
            self._arrived[slot] = self._stream.record_event()


def copies_for(slots: Arena, device: torch.device) -> Copies:
    """What suits the device that the slots are on."""
    streams = device.type == "cuda" and torch.cuda.is_available()
    return StreamCopies(slots, device) if streams else Copies(slots)
