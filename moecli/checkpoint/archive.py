"""Zip archives as torch writes them: where each stored entry lies, by the directory at the end; nothing is unpacked.

Entries lie one behind another without gaps, so that the directory alone tells every byte's place, and a file on the
Hub needs no request for each. Compressed, encrypted and overlapping entries are refused. Format: PKWARE's APPNOTE.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from moecli.checkpoint.stored import Source
from moecli.errors import CheckpointError

MAGIC = b"PK\x03\x04"
_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END_FIELDS = struct.Struct("<4s4H2IH")
_END64_FIELDS = struct.Struct("<4sQ2H2I4Q")
_LOCATOR_FIELDS = struct.Struct("<4sIQI")
_TAIL = 2**16 + 22  # a comment of any length, and the end record
_LARGEST_DIRECTORY = 2**24
_MOST_ENTRIES = 50_000
_ENCRYPTED, _DESCRIBED = 0x0001, 0x0008  # flags: the second says that a descriptor follows the bytes
_IN_EXTRA = 2**32 - 1  # a size or offset that stands in the zip64 extra field


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive: `size` bytes, stored as they are, at `offset`. Its own header lies at `header`."""

    name: str
    header: int
    offset: int
    size: int


def read_directory(source: Source, size: int, where: str) -> dict[str, Entry]:
    """The entries of an archive of `size` bytes, in the order in which they lie. CheckpointError if it is unsound."""
    begin = max(0, size - _TAIL)
    tail = source(begin, size - begin)
    place = tail.rfind(_END)
    if place < 0 or len(tail) - place < _END_FIELDS.size:
        raise _damaged(where, "it has no directory at its end: it is cut short, or no file of torch")
    _, disk, first_disk, here, count, length, start, comment = _END_FIELDS.unpack_from(tail, place)
    end = begin + place
    if len(tail) - place != _END_FIELDS.size + comment:
        raise _damaged(where, "something follows its directory")
    if place >= _LOCATOR_FIELDS.size and tail[place - _LOCATOR_FIELDS.size : place].startswith(_LOCATOR64):
        _, disk, record, _ = _LOCATOR_FIELDS.unpack_from(tail, place - _LOCATOR_FIELDS.size)
        data = source(record, _END64_FIELDS.size) if record + _END64_FIELDS.size <= size else b""
        if len(data) < _END64_FIELDS.size or not data.startswith(_END64):
            raise _damaged(where, "its directory is not where it says")
        narrow = disk, first_disk, here, count, length, start
        _, _, _, _, disk, first_disk, here, count, length, start = _END64_FIELDS.unpack(data)
        for short, long in zip(narrow, (disk, first_disk, here, count, length, start), strict=True):
            if short not in (long, 2**16 - 1, 2**32 - 1):
                raise _damaged(where, "it has two directories that differ")
        end = record
    if disk or first_disk or here != count:
        raise _damaged(where, "it is one part of several")
    if length > _LARGEST_DIRECTORY or count > _MOST_ENTRIES or start + length != end:
        raise _damaged(where, "its directory is not where it says, or too long")
    directory = tail[start - begin : end - begin] if start >= begin else source(start, length)
    if len(directory) != length:
        raise _damaged(where, "it is cut short")
    return _placed(sorted(_rows(directory, count, where), key=lambda row: row.header), start, where)


def check_headers(source: Source, entries: dict[str, Entry], where: str) -> None:
    """Whether each entry's own header agrees with the directory. CheckpointError if one does not."""
    for entry in entries.values():
        data = source(entry.header, _LOCAL.size + len(entry.name.encode()))
        if len(data) < _LOCAL.size:
            raise _damaged(where, "it is cut short")
        magic, _, flags, method, *_, name, extra = _LOCAL.unpack_from(data)
        begins = entry.header + _LOCAL.size + name + extra
        named = data[_LOCAL.size :] == entry.name.encode() and name == len(entry.name.encode())
        if magic != MAGIC or method or flags & _ENCRYPTED or not named or begins != entry.offset:
            raise _damaged(where, f"the header of its entry '{entry.name[:80]}' is not what its directory says")


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    header: int
    size: int
    after: int  # bytes of the descriptor


def _rows(directory: bytes, count: int, where: str) -> Iterator[_Row]:
    place = 0
    for _ in range(count):
        if len(directory) - place < _CENTRAL.size:
            raise _damaged(where, "its directory is cut short")
        (
            magic, _, _, flags, method, _, _, _, packed, size, name, extra, comment, disk, _, _, header
        ) = _CENTRAL.unpack_from(directory, place)  # fmt: skip
        place += _CENTRAL.size
        raw, more = directory[place : place + name], directory[place + name : place + name + extra]
        place += name + extra + comment
        if magic != b"PK\x01\x02" or place > len(directory) or disk:
            raise _damaged(where, "its directory cannot be read")
        shown = raw.decode("ascii", "replace")
        if method or flags & _ENCRYPTED:
            raise _damaged(where, f"its entry '{shown[:80]}' is compressed or encrypted, as torch writes none")
        wide = list(_wide(more))
        fields = iter(wide)
        size, packed, header = (next(fields, -1) if each == _IN_EXTRA else each for each in (size, packed, header))
        if size != packed or size < 0 or header < 0 or "\ufffd" in shown:
            raise _damaged(where, f"its entry '{shown[:80]}' cannot be read")
        yield _Row(shown, header, size, (24 if wide else 16) if flags & _DESCRIBED else 0)
    if place != len(directory):
        raise _damaged(where, "its directory holds more than its entries")


def _wide(extra: bytes) -> Iterator[int]:
    """The 64-bit fields of a directory's row: sizes and offset, those of them that do not fit the row."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            field = extra[4 : 4 + length]
            yield from (int.from_bytes(field[at : at + 8], "little") for at in range(0, len(field) - 7, 8))
        extra = extra[4 + length :]


def _placed(rows: list[_Row], end: int, where: str) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for row, behind in zip(rows, [*(each.header for each in rows[1:]), end], strict=False):
        offset = behind - row.after - row.size
        if offset < row.header + _LOCAL.size + len(row.name) or row.name in entries:
            raise _damaged(where, f"its entry '{row.name[:80]}' overlaps another, or is there twice")
        entries[row.name] = Entry(row.name, row.header, offset, row.size)
    return entries


def _damaged(where: str, problem: str) -> CheckpointError:
    return CheckpointError(f"{where} is damaged: {problem}", "fetch the file again")
