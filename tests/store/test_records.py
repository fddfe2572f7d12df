"""Records, pieces, strips and checksums by hand: where bytes lie is what other moecli have written."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from moecli.checkpoint.binding import Slice
from moecli.checkpoint.stored import StoredTensor
from moecli.errors import CheckpointError
from moecli.formats import bytes_for
from moecli.model.spec import FeedForward
from moecli.store import manifest
from moecli.store.checksums import file_checksums
from moecli.store.convert import _strips
from moecli.store.expert_record import Field, Piece, expert_record
from moecli.store.jobs import Job
from moecli.store.packed import PackedStore

MIB = 2**20


def test_a_record_by_hand() -> None:
    """Matrices one after another, each on a cache line, the whole in pages."""
    record = expert_record(24, FeedForward(40), "bf16")
    assert record.fields == {
        "gate": Field((40, 24), 0, 1920), "up": Field((40, 24), 1920, 1920), "down": Field((24, 40), 3840, 1920)
    }  # fmt: skip
    assert (record.size, record.stride) == (5760, 8192)
    odd = expert_record(5, FeedForward(7), "fp32")
    assert [(field.offset, field.size) for field in odd.fields.values()] == [(0, 140), (192, 140), (384, 140)]


@pytest.mark.parametrize(("width", "pieces"), [(2730, 1), (2731, 2)])
def test_what_is_larger_than_16_mib_is_cut(width: int, pieces: int) -> None:
    record = expert_record(1024, FeedForward(width), "bf16")
    assert (record.size <= 16 * MIB) == (pieces == 1) and len(record.pieces()) == pieces
    if pieces == 1:
        assert record.pieces() == (Piece(("gate", "up", "down"), 0, None, ((0, record.size),)),)
    assert expert_record(1024, FeedForward(width), "nf4").pieces()[0].rows is None


def test_pieces_by_hand() -> None:
    """14,336 rows of 4,096 in blocks of 256 rows, two matrices at once: 1,024 rows are 16 MiB. Down: 9 blocks of 64."""
    record = expert_record(4096, FeedForward(14336), "bf16")
    up, down = 14336 * 8192, 2 * 14336 * 8192
    expected = [
        Piece(("gate", "up"), first, 1024, ((first * 8192, 8 * MIB), (up + first * 8192, 8 * MIB)))
        for first in range(0, 14336, 1024)
    ]
    expected += [
        Piece(("down",), first, rows := min(576, 4096 - first), ((down + first * 28672, rows * 28672),))
        for first in range(0, 4096, 576)
    ]
    assert list(record.pieces()) == expected
    assert record.largest_piece == 16 * MIB


def job(shape: tuple[int, ...], dtype: str = "q4", transposed: bool = False) -> Job:
    stored = StoredTensor("x", Path("x"), "BF16", shape, 0, 2 * shape[0] * (shape[1] if len(shape) > 1 else 1))
    return Job("x", 0, "x", 4096, dtype, shape, (Slice(stored, 0, stored.size, shape, transposed),))


@pytest.mark.parametrize(
    ("one", "step"),
    [
        (job((10_000, 4096)), 4096), (job((10_000, 5000)), 3328), (job((200, 2**25)), 64), (job((200, 2**19)), 64),
        (job((10_000, 4096), "nf4"), 10_000), (job((10_000, 4096), transposed=True), 4096), (job((10_000,)), 10_000),
        (job((100, 4096)), 100),
    ],
)  # fmt: skip
def test_a_strip_is_of_16_million_numbers(one: Job, step: int) -> None:
    """In whole blocks of 64 rows, and at least one; what can only be packed whole is one strip."""
    strips = list(_strips(one))
    rows = one.shape[0]
    starts = range(0, rows, step)
    assert [(each.first, each.last) for each in strips] == [(first, min(first + step, rows)) for first in starts]
    assert [each.is_last for each in strips] == [False] * (len(strips) - 1) + [True]
    assert [each.offset for each in strips] == [
        4096 + (bytes_for(one.dtype, (first, one.shape[-1])) if first else 0) for first in starts
    ]
    assert sum(each.read_size for each in strips) == one.read_size
    assert strips[0].read_size == one.read_size * strips[0].last // rows


@pytest.mark.parametrize("start", [0, 10])
def test_checksums_by_hand(start: int, tmp_path: Path) -> None:
    data = bytes(range(256)) * (5 * MIB // 256) + b"end"
    (tmp_path / "file").write_bytes(data)
    seen: list[int] = []
    parts = [(start, 4 * MIB + 1), (start + 4 * MIB + 1, len(data) - start - 4 * MIB - 1)]
    found = file_checksums(tmp_path / "file", parts, seen.append)
    digests = [hashlib.sha256(data[offset : offset + size]).hexdigest()[:32] for offset, size in parts]
    assert found == manifest.FileChecksums(len(data), hashlib.sha256(data).hexdigest(), tuple(digests))
    assert seen == [each for each in (start, 4 * MIB, 1, parts[1][1]) if each]
    seen.clear()
    assert file_checksums(tmp_path / "file", seen=seen.append) == manifest.FileChecksums(len(data), found.sha256)
    assert seen == [4 * MIB, MIB + 3]


def test_a_manifest_has_a_largest_size(tmp_path: Path) -> None:
    with (tmp_path / manifest.FILE).open("wb") as file:
        file.truncate(256 * MIB + 1)
    with pytest.raises(CheckpointError, match=r"manifest\.json is too large"):
        manifest.read(tmp_path)


STRIP = next(_strips(job((100, 4096))))


def test_what_was_read_of_a_store_stays_so(store: PackedStore) -> None:
    """It was checked as a whole."""
    for one, name in (
        (store, "folder"),
        (store.source, "revision"),
        (store.manifest, "dtype"),
        (store.layout, "dtype"),
    ):
        with pytest.raises(AttributeError):
            setattr(one, name, None)
