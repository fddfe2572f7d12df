"""Records read whole or through staging: which bytes, how many, in what order; and how a disk is measured."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from moecli.errors import CheckpointError
from moecli.experts import disk
from moecli.experts.arena import Arena
from moecli.experts.disk import Disk
from moecli.experts.pieces import PiecewiseExpert
from moecli.experts.readers import PendingRead, Range, Readers
from moecli.experts.store import Statistics
from moecli.kernels.linear import Packed
from moecli.store import expert_record
from moecli.store.expert_record import PAGE, STAGING
from moecli.store.packed import PackedStore
from tests.support.checkpoints import make, write
from tests.support.stores import Stores, packed


class Noting(Readers):
    """What is asked for."""

    def __init__(self) -> None:
        super().__init__(1)
        self.asked: list[list[tuple[str, int, int]]] = []

    def read(self, ranges: Iterable[Range], arrived: Callable[[PendingRead], None] | None = None) -> PendingRead:
        ranges = list(ranges)
        self.asked.append([(each.path.name, each.offset, len(each.target)) for each in ranges])
        return super().read(ranges, arrived)


@pytest.fixture
def readers() -> Iterable[Noting]:
    found = Noting()
    yield found
    found.close()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> PackedStore:
    folder = tmp_path_factory.mktemp("large")
    return packed(write(make("mixtral", hidden_size=128, intermediate_size=448), folder / "model"), folder / "store")


@pytest.fixture
def in_pieces(large: PackedStore, monkeypatch: pytest.MonkeyPatch) -> PackedStore:
    monkeypatch.setattr(expert_record, "PIECE", 2**15)
    monkeypatch.setattr("moecli.formats.blocks._WEIGHTS", 2**13)
    assert len(large.record(0).pieces()) == STAGING
    return large


def content(store: PackedStore, layer: int, expert: int) -> bytes:
    lies, stride = store.experts(layer), store.record(layer).stride
    return lies.path.read_bytes()[lies.offset + expert * stride :][:stride]


def test_a_record_is_read_whole_into_its_slot(stores: Stores, readers: Noting) -> None:
    store, statistics = stores("mixtral", "q4"), Statistics()
    stride = store.record(1).stride
    arena, arrived = Arena(2, stride + PAGE), queue.SimpleQueue[PendingRead]()
    found = Disk(store, statistics, readers)
    for number, expert in enumerate((3, 0)):
        read = found.fetch(1, expert, arena.memory(number), arrived.put)
        assert found.next(arrived) is read
        assert bytes(arena.memory(number)) == content(store, 1, expert) + bytes(PAGE)
    begin = store.experts(1).offset
    assert readers.asked == [[("experts-001.safetensors", begin + expert * stride, stride)] for expert in (3, 0)]
    assert statistics.bytes_read == 2 * stride and statistics.hits == statistics.misses == 0


def test_small_experts_stream_whole_and_a_few_ahead(stores: Stores, readers: Noting) -> None:
    store, statistics = stores("dbrx", "q4"), Statistics()
    record = store.record(0)
    stream = Disk(store, statistics, readers).stream(0, [5, 1, 4, 0, 3, 2])
    assert len(readers.asked) == STAGING == 4
    for number, (expert, matrices) in enumerate(stream):
        assert expert == (5, 1, 4, 0, 3, 2)[number]
        assert len(readers.asked) == min(6, STAGING + number)
        for field, matrix in zip(record.fields.values(), matrices, strict=True):
            assert isinstance(matrix, Packed) and matrix.shape == field.shape
            whole = content(store, 0, expert)
            assert bytes(matrix.data.numpy()) == whole[field.offset : field.offset + field.size]
    assert statistics.bytes_read == 6 * record.stride
    begin = store.experts(0).offset
    assert readers.asked == [
        [("experts-000.safetensors", begin + n * record.stride, record.stride)] for n in (5, 1, 4, 0, 3, 2)
    ]


def test_large_experts_stream_piece_by_piece_in_whole_pages(in_pieces: PackedStore, readers: Noting) -> None:
    statistics, record = Statistics(), in_pieces.record(1)
    pieces = record.pieces()
    stream = Disk(in_pieces, statistics, readers).stream(1, [2, 0])
    for expert, streamed in stream:
        assert isinstance(streamed, PiecewiseExpert)
        whole, number = content(in_pieces, 1, expert), 0
        for number, (piece, matrices) in enumerate(streamed.pieces()):
            assert piece == pieces[number]
            assert [each.shape[0] for each in matrices] == [piece.rows] * len(piece.matrices)
            for (offset, size), matrix in zip(piece.spans, matrices, strict=True):
                assert isinstance(matrix, Packed) and bytes(matrix.data.numpy()) == whole[offset : offset + size]
        assert number == len(pieces) - 1
    begin, expected = in_pieces.experts(1).offset, []
    for expert in (2, 0):
        for piece in pieces:
            spans = [(offset // PAGE * PAGE, -(-(offset + size) // PAGE) * PAGE) for offset, size in piece.spans]
            start = begin + expert * record.stride
            expected.append([("experts-001.safetensors", start + first, end - first) for first, end in spans])
    assert readers.asked == expected
    assert statistics.bytes_read == sum(size for ranges in expected for _, _, size in ranges)


def test_a_stream_that_is_left_waits_for_what_it_asked_for(in_pieces: PackedStore, readers: Noting) -> None:
    stream = Disk(in_pieces, Statistics(), readers).stream(0, [0, 1, 2])
    reads = [each.read for each in stream._pending]
    stream.close()
    assert len(readers.asked) == STAGING and all(each.done.is_set() for each in reads)
    assert not stream._pending


def test_a_streamed_expert_that_cannot_be_read_is_an_error(stores: Stores, readers: Noting, tmp_path: Path) -> None:
    store = stores("mixtral", "q4")
    found = Disk(store, Statistics(), readers)
    found._store = SimpleNamespace(  # type: ignore[assignment]
        record=store.record, experts=lambda layer: SimpleNamespace(path=tmp_path / "none", offset=0)
    )
    with pytest.raises(CheckpointError, match="none cannot be read"):
        next(iter(found.stream(0, [0])))


def test_seconds_that_nothing_else_is_done_in_are_waiting(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads are under way from 10 to 17 and from 20 to 24; of that somebody waits for 3, 1 and 2 seconds."""
    clock = 10.0
    monkeypatch.setattr(disk, "time", SimpleNamespace(perf_counter=lambda: clock))

    class Late:
        def __init__(self) -> None:
            self.arrived: list[Callable[[PendingRead], None]] = []

        def read(self, ranges: Iterable[Range], arrived: Callable[[PendingRead], None]) -> PendingRead:
            self.arrived.append(arrived)
            return PendingRead(1, arrived)

    class Waited(queue.SimpleQueue[PendingRead]):
        def get(self, *_: object) -> PendingRead:
            nonlocal clock
            clock += 3
            return super().get()

    store, statistics, readers = stores("mixtral", "q4"), Statistics(), Late()
    found, memory, queued = Disk(store, statistics, readers), Arena(1, 2**16).memory(0), Waited()  # type: ignore[arg-type]
    one, other = (found.fetch(0, expert, memory, queued.put) for expert in (0, 1))
    clock = 12.0
    one.finish(None)
    assert found.next(queued) is one and (statistics.wait_s, statistics.read_s) == (3, 0)
    clock = 17.0
    other.finish(None)
    assert found.next(queued) is other and (statistics.wait_s, statistics.read_s) == (6, 7)
    clock = 20.0
    third = found.fetch(0, 2, memory, queued.put)
    clock = 24.0
    third.finish(None)
    found.wait(third)
    assert (statistics.wait_s, statistics.read_s) == (6, 11)


@pytest.mark.parametrize(
    ("layers", "sample", "chosen"),
    [
        (5, 64, [0, 1, 2, 3, 4]), (5, 3, [0, 1, 2]), (5, 2, [0, 2]), (5, 1, [0]), (5, 0, [0]), (8, 3, [0, 2, 4]),
        (8, 4, [0, 2, 4, 6]), (9, 4, [0, 2, 4, 6]),
    ],
)  # fmt: skip
def test_a_disk_is_measured_by_records_spread_over_the_layers(
    layers: int, sample: int, chosen: list[int], stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as make up 64 MiB; bytes per second from the first read that is begun to the last that arrives."""
    assert disk._SAMPLE == 64 * 2**20
    store, asked, clock = stores("mixtral", "q4"), list[tuple[int, int, int]](), 100.0
    stride = store.record(0).stride
    monkeypatch.setattr(disk, "_SAMPLE", sample * stride + stride // 2)
    monkeypatch.setattr(disk, "time", SimpleNamespace(perf_counter=lambda: clock))

    class Layers:
        spec = SimpleNamespace(mixtures=tuple((layer, None) for layer in range(layers)))
        copy = None

        def record(self, layer: int) -> object:
            return store.record(0)

        def experts(self, layer: int) -> object:
            return store.experts(0)

    fetch = Disk.fetch

    def fetched(
        self: Disk, layer: int, expert: int, slot: memoryview, arrived: Callable[[PendingRead], None]
    ) -> PendingRead:
        nonlocal clock
        clock += 0.5
        asked.append((layer, expert, len(slot)))
        return fetch(self, layer, expert, slot, arrived)

    monkeypatch.setattr(Disk, "fetch", fetched)
    assert disk.measure(Layers()) == pytest.approx(stride / 0.5)  # type: ignore[arg-type]
    assert asked == [(layer, 0, stride) for layer in chosen]
