"""Records on disk, of a store or made of a checkpoint: whole into a slot, or in pieces through staging buffers."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple

from torch import Tensor

from moecli.experts import unpacked
from moecli.experts.arena import Arena
from moecli.experts.pieces import PiecewiseExpert, piece_matrices, record_matrices
from moecli.experts.readers import PendingRead, Range, Readers
from moecli.experts.store import Statistics, Streamed
from moecli.experts.unpacked import UnpackedRecords
from moecli.kernels.linear import Expert, Matrix
from moecli.store.expert_record import PAGE, STAGING, Piece, Record, pages, staging_size
from moecli.store.packed import PackedStore

_LOG = logging.getLogger(__name__)
_SAMPLE = 64 * 2**20  # bytes that a measurement reads


Records = PackedStore | UnpackedRecords  # what experts are read from


def readers_of(records: Records) -> Readers:
    """The threads that suit it."""
    return Readers(unpacked.THREADS) if isinstance(records, UnpackedRecords) else Readers(copy=records.copy)


class Disk:
    """Begins reads; the statistics are the store's that uses it."""

    def __init__(self, store: Records, statistics: Statistics, readers: Readers) -> None:
        self._store = store
        self._statistics = statistics
        self._readers = readers
        self._lock = threading.Lock()
        self._pending = 0  # reads on their way, since `began`
        self._began = 0.0
        self._staging = Arena(STAGING, max(staging_size(store.record(layer)) for layer, _ in store.spec.mixtures))

    def fetch(
        self, layer: int, expert: int, slot: memoryview, arrived: Callable[[PendingRead], None] | None = None
    ) -> PendingRead:
        """Read one record whole into memory of at least its stride."""
        record = self._store.record(layer)
        return self._read(layer, expert, [(0, slot[: record.stride])], arrived)

    def stream(self, layer: int, experts: Sequence[int]) -> Stream:
        """Begin to read whole experts, in this order, that pass through staging and stay nowhere."""
        return Stream(self, layer, experts)

    def next(self, arrived: queue.SimpleQueue[PendingRead]) -> PendingRead:
        """The next to arrive. CheckpointError if it could not be read."""
        began = time.perf_counter()
        read = arrived.get()
        self._statistics.wait_s += time.perf_counter() - began
        read.check()
        return read

    def wait(self, read: PendingRead) -> None:
        """Block until this read has arrived. CheckpointError if it failed."""
        began = time.perf_counter()
        read.done.wait()
        self._statistics.wait_s += time.perf_counter() - began
        read.check()

    def _read(
        self,
        layer: int,
        expert: int,
        parts: Sequence[tuple[int, memoryview]],
        arrived: Callable[[PendingRead], None] | None = None,
        piece: Piece | None = None,
    ) -> PendingRead:
        """Parts of one record, of a piece of it or of all: where each begins in it, in whole pages, and its memory."""
        with self._lock:
            self._began = self._began if self._pending else time.perf_counter()
            self._pending += 1

        def finished(read: PendingRead) -> None:
            with self._lock:
                self._pending -= 1
                if not self._pending:
                    self._statistics.read_s += time.perf_counter() - self._began
            if arrived is not None:
                arrived(read)

        return self._begin(layer, expert, parts, piece, finished)

    def _begin(
        self,
        layer: int,
        expert: int,
        parts: Sequence[tuple[int, memoryview]],
        piece: Piece | None,
        finished: Callable[[PendingRead], None],
    ) -> PendingRead:
        if isinstance(self._store, UnpackedRecords):
            return self._make(self._store, layer, expert, parts, piece, finished)
        stored = self._store.experts(layer)
        start = stored.offset + expert * self._store.record(layer).stride
        size = sum(len(memory) for _, memory in parts)
        self._statistics.bytes_read += size
        _LOG.debug("reads %d bytes of layer %d, expert %d from %s at %d", size, layer, expert, stored.path, start)
        return self._readers.read([Range(stored.path, start + offset, memory) for offset, memory in parts], finished)

    def _make(
        self,
        records: UnpackedRecords,
        layer: int,
        expert: int,
        parts: Sequence[tuple[int, memoryview]],
        piece: Piece | None,
        finished: Callable[[PendingRead], None],
    ) -> PendingRead:
        """The same of a checkpoint whose experts become records as they are read."""
        if piece is None or piece.rows is None:
            fields = records.record(layer).fields.items()
            begin, memory = parts[0]
            found = [(name, 0, memory[field.offset - begin :][: field.size]) for name, field in fields]
        else:
            found = [
                (name, piece.first, memory[offset % PAGE :][:size])
                for name, (offset, size), (_, memory) in zip(piece.matrices, piece.spans, parts, strict=True)
            ]

        def made(read: PendingRead) -> None:
            self._statistics.bytes_read = records.checkpoint.bytes_read
            finished(read)

        _LOG.debug("reads and converts layer %d, expert %d: %s", layer, expert, [name for name, _, _ in found])
        return self._readers.run([partial(records.fill, layer, expert, *each) for each in found], made)


def measure(store: Records) -> float:
    """Bytes per second of a short burst of reads, spread over the layers; of a checkpoint those that it is read by."""
    layers = [layer for layer, _ in store.spec.mixtures]
    stride = store.record(layers[0]).stride
    count = max(1, min(len(layers), _SAMPLE // stride))
    arena = Arena(count, stride)
    chosen = layers[:: max(1, len(layers) // count)][:count]
    arrived: queue.SimpleQueue[PendingRead] = queue.SimpleQueue()
    with closing(readers_of(store)) as readers:
        disk = Disk(store, statistics := Statistics(), readers)
        began = time.perf_counter()
        for slot, layer in enumerate(chosen):
            disk.fetch(layer, 0, arena.memory(slot), arrived.put)
        for _ in chosen:
            disk.next(arrived)
        return statistics.bytes_read / (time.perf_counter() - began)


class _PendingPiece(NamedTuple):
    piece: Piece
    buffer: int
    read: PendingRead


class Stream:
    """Experts in the order asked for; while one piece is computed, the next ones are read."""

    def __init__(self, disk: Disk, layer: int, experts: Sequence[int]) -> None:
        self._disk, self._layer, self._experts = disk, layer, experts
        self._record: Record = disk._store.record(layer)
        self._waiting = deque((expert, piece) for expert in experts for piece in self._record.pieces())
        self._free = list(range(len(disk._staging)))
        self._pending: deque[_PendingPiece] = deque()
        self._submit()

    def __iter__(self) -> Iterator[tuple[int, Expert | Streamed]]:
        whole = len(self._record.pieces()) == 1
        for expert in self._experts:
            if whole:
                for _, spans in self._arrived(1):
                    yield expert, record_matrices(self._record, spans[0])
            else:
                yield expert, PiecewiseExpert(self._record, self._pieces)

    def close(self) -> None:
        """Wait for what is on its way: nothing may be written into the buffers afterwards."""
        while self._pending:
            self._pending.popleft().read.done.wait()

    def _pieces(self) -> Iterator[tuple[Piece, list[Matrix]]]:
        for piece, spans in self._arrived(len(self._record.pieces())):
            yield piece, piece_matrices(self._record, piece, spans)

    def _arrived(self, count: int) -> Iterator[tuple[Piece, list[Tensor]]]:
        """The next pieces, each valid until the one after it is asked for."""
        for _ in range(count):
            piece, buffer, read = self._pending[0]
            self._disk.wait(read)
            yield piece, _spans(piece, self._disk._staging.slot(buffer))
            self._pending.popleft()
            self._free.append(buffer)
            self._submit()

    def _submit(self) -> None:
        while self._free and self._waiting:
            expert, piece = self._waiting.popleft()
            buffer = self._free.pop()
            memory = self._disk._staging.memory(buffer)
            parts = []
            position = 0
            for offset, size in piece.spans:
                length = pages(offset % PAGE + size)
                parts.append((offset // PAGE * PAGE, memory[position : position + length]))
                position += length
            read = self._disk._read(self._layer, expert, parts, piece=piece)
            self._pending.append(_PendingPiece(piece, buffer, read))


def _spans(piece: Piece, buffer: Tensor) -> list[Tensor]:
    """The bytes of each span, in the pages that were read for it."""
    found = []
    position = 0
    for offset, size in piece.spans:
        found.append(buffer[position + offset % PAGE :][:size])
        position += pages(offset % PAGE + size)
    return found
