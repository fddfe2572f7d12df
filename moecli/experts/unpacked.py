"""The experts of an unpacked checkpoint as records of a format, made of its own files whenever they are asked for."""

from __future__ import annotations

import math
import mmap
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from moecli.checkpoint.binding import Slice, Weights, format_of
from moecli.checkpoint.folder import Checkpoint
from moecli.checkpoint.reading import read_rows
from moecli.checkpoint.stored import StoredTensor, damaged
from moecli.errors import unreadable
from moecli.experts.readers import File
from moecli.formats import PLAIN, bytes_for
from moecli.formats.blocks import row_blocks
from moecli.formats.plain import torch_dtype
from moecli.formats.words import formats_of
from moecli.model.spec import ModelSpec
from moecli.planning.memory import Unpacked
from moecli.store.expert_record import PAGE, WHOLE, Record, layer_records, pages
from moecli.store.pack_rows import keeps, pack_rows

THREADS = 2  # that read and convert: while one does the one, another does the other
_BOUNCE = 2**20  # bytes read at once
_NEAR = 4 * PAGE  # a gap between two pieces that is read over rather than jumped
_WORKING = 40  # bytes per number of a strip while it is decoded and packed: an estimate, not measured
_TRANSPOSED = 6  # of a matrix that is stored by columns: as stored, and turned round


class DirectCheckpoint(Checkpoint):
    """The same tensors read past the page cache, in whole pages: nothing is mapped or left behind."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        super().__init__(tensors)
        self.bytes_read = 0
        self._files: dict[Path, File] = {}
        self._own = threading.local()
        self._counting = threading.Lock()

    def read_into(self, target: memoryview, tensor: StoredTensor, offset: int = 0) -> None:
        """Fill `target` with the bytes of `tensor` from `offset` on. CheckpointError where they cannot be read."""
        start, done, bounce = tensor.offset + offset, 0, self._bounce()
        while done < len(target):
            first = (start + done) // PAGE * PAGE
            skipped = start + done - first
            wanted = min(len(bounce), pages(skipped + len(target) - done))
            count = min(self._read(tensor, first, bounce[:wanted]) - skipped, len(target) - done)
            if count <= 0:
                raise damaged(tensor.path, f"'{tensor.name}' is cut short")
            target[done : done + count] = bounce[skipped : skipped + count]
            done += count

    def read_strided(self, target: memoryview, tensor: StoredTensor, offset: int, width: int, pitch: int) -> None:
        """Fill `target` with pieces of `width` bytes that begin every `pitch` bytes from `offset` of `tensor` on."""
        pieces = len(target) // width
        if pitch - width > _NEAR:
            for piece in range(pieces):
                self.read_into(target[piece * width : (piece + 1) * width], tensor, offset + piece * pitch)
            return
        at_once = max(1, _BOUNCE // pitch)
        run = torch.empty(at_once * pitch, dtype=torch.uint8)
        found = torch.frombuffer(target, dtype=torch.uint8).view(pieces, width)
        for first in range(0, pieces, at_once):
            count = min(at_once, pieces - first)
            size = (count - 1) * pitch + width
            self.read_into(run.numpy().data[:size], tensor, offset + first * pitch)
            found[first : first + count] = run.as_strided((count, width), (pitch, 1))

    def _read(self, tensor: StoredTensor, offset: int, target: memoryview) -> int:
        try:
            with self._counting:
                if tensor.path not in self._files:
                    self._files[tensor.path] = File(tensor.path)
            count = self._files[tensor.path].read(offset, target)
        except OSError as error:
            raise unreadable(tensor.path, error) from error
        with self._counting:
            self.bytes_read += count
        return count

    def _bounce(self) -> memoryview:
        """This thread's own pages."""
        if not hasattr(self._own, "pages"):
            self._own.pages = memoryview(mmap.mmap(-1, _BOUNCE))
        found: memoryview = self._own.pages
        return found


@dataclass(frozen=True, slots=True)
class UnpackedRecords:
    """What a packed store of these weights would hold, expert by expert: the same bytes, made when they are needed."""

    weights: Weights
    dtype: str  # of experts
    records: Mapping[int, Record]
    checkpoint: DirectCheckpoint

    @classmethod
    def of(cls, weights: Weights, dtype: str) -> UnpackedRecords:
        experts, records = formats_of(dtype).experts, layer_records(weights.spec, dtype)
        return cls(weights, experts, records, DirectCheckpoint(weights.checkpoint.tensors))

    @property
    def spec(self) -> ModelSpec:
        return self.weights.spec

    def record(self, layer: int) -> Record:
        """How each expert of a layer is to lie."""
        return self.records[layer]

    def fill(self, layer: int, expert: int, matrix: str, first: int, target: memoryview) -> None:
        """Write rows of one matrix, from `first` on, as they lie in a record. CheckpointError if they cannot be had."""
        part = self.weights.expert(layer, expert, matrix)
        columns = self.records[layer].fields[matrix].shape[1]
        data = torch.frombuffer(target, dtype=torch.uint8)
        rows = _rows_in(self.dtype, self.records[layer].fields[matrix].shape, len(data))
        if self.dtype in PLAIN and self.dtype == format_of(part.stored):
            read_rows(data.view(torch_dtype(self.dtype)).view(rows, columns), self.checkpoint, part, first)
            return
        for strip in [slice(0, rows)] if _at_once(self.dtype, part) else row_blocks(rows, columns):
            begin, end = (bytes_for(self.dtype, (row, columns)) if row else 0 for row in (strip.start, strip.stop))
            taken = slice(first + strip.start, first + strip.stop)
            what = f"{matrix} of expert {expert} of layer {layer}"
            pack_rows(data[begin:end], self.dtype, self.checkpoint, part, taken, what)


def unpacked(weights: Weights, dtype: str) -> Unpacked:
    """What reading such experts takes, for a plan."""
    most = read = 0
    for layer, record in layer_records(weights.spec, dtype).items():
        parts = {name: weights.expert(layer, 0, name) for name in record.fields}
        read = max(read, sum(map(_read_bytes, parts.values())))
        most = max(most, *(_buffers(record.dtype, part, record.fields[name].shape) for name, part in parts.items()))
    return Unpacked(read, THREADS * (most + _BOUNCE))


def _read_bytes(part: Slice) -> int:
    """Of one matrix with what belongs to it, each rounded to whole pages on both sides."""
    whole = part.stored.size
    share = part.size / whole if whole and part.columns is None else 1 / max(1, _matrices_in(part))
    return sum(pages(int(each.size * share)) + PAGE for each in part.stored.parts)


def _matrices_in(part: Slice) -> int:
    """How many such lie in its tensor: what is beside it in the same rows is read as well."""
    return part.stored.size // part.size if part.size else 1


def _buffers(dtype: str, part: Slice, shape: tuple[int, int]) -> int:
    """A thread's own memory for one matrix."""
    (rows, columns), encoding = shape, part.stored.encoding
    if dtype in PLAIN and dtype == format_of(part.stored) and encoding is None and not part.transposed:
        return 0
    numbers = columns * (rows if _at_once(dtype, part) else next(row_blocks(rows, columns)).stop)
    if encoding is not None and keeps(dtype, part):  # with whatever shares its tensors and takes turns there
        return -(-numbers * sum(each.size for each in encoding.parts) // math.prod(part.stored.shape))
    if encoding is None and part.transposed:
        return numbers * _TRANSPOSED
    return numbers * _WORKING


def _at_once(dtype: str, part: Slice) -> bool:
    """Whether a matrix is not cut: its format does not allow it, or its columns lie where its rows should."""
    return dtype in WHOLE or (part.transposed and not keeps(dtype, part))


def _rows_in(dtype: str, shape: tuple[int, int], size: int) -> int:
    """How many rows so many bytes are."""
    return shape[0] if size == bytes_for(dtype, shape) else size * 64 // bytes_for(dtype, (64, shape[1]))
