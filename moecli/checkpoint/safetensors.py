"""Safetensors on disk: headers checked before anything is trusted."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moecli.checkpoint.stored import ITEM_SIZES, StoredTensor, damaged, regular_size
from moecli.errors import json_object, unreadable

_LOG = logging.getLogger(__name__)
_LARGEST_HEADER = 100_000_000  # the format's own limit


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, every claim checked against the file's real size."""
    try:
        file_size = regular_size(path)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if file_size < 8 or not 2 <= length <= min(_LARGEST_HEADER, file_size - 8):
                raise damaged(path, f"its header claims {length} bytes and the file has {file_size}")
            text = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from error
    _LOG.debug("reads the header of %s: %d of %d bytes", path, length, file_size)
    return header_tensors(path, text, file_size)


def header_tensors(path: Path, text: bytes, file_size: int) -> dict[str, StoredTensor]:
    """The tensors that the JSON of a header describes, held against the size of the file it heads."""
    start = 8 + len(text)
    header = parse_header(path, text)
    tensors = [_checked(path, name, entry, start) for name, entry in header.items() if name != "__metadata__"]
    _check_layout(path, tensors, start, file_size)
    return {tensor.name: tensor for tensor in tensors}


def parse_header(path: Path, text: bytes) -> dict[str, Any]:
    """The JSON object of a header; names that appear twice are refused."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise damaged(path, "its header names a tensor twice")
        return dict(pairs)

    return json_object(text, lambda problem: damaged(path, f"its header {problem}"), unique)


def _checked(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        item = ITEM_SIZES[dtype]
        whole = all(type(n) is int and 0 <= n < 2**48 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"its header describes '{name[:80]}' in an unknown way") from error
    if type(shape) is not list or not whole or len(shape) > 8 or begin > end or end - begin != math.prod(shape) * item:
        raise damaged(path, f"the shape and the offsets of '{name[:80]}' disagree")
    return StoredTensor(name, dtype, tuple(shape), path, start + begin, end - begin)


def _check_layout(path: Path, tensors: Iterable[StoredTensor], start: int, file_size: int) -> None:
    end = start
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.size)):
        if tensor.offset < end:
            raise damaged(path, f"'{tensor.name}' overlaps the tensor before it")
        end = tensor.offset + tensor.size
        if end > file_size:
            raise damaged(path, f"'{tensor.name}' ends at byte {end} and the file at {file_size}: it is cut short")
