"""Jobs -> packed bytes, a strip of rows at a time: the next strip is read while one is packed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moecli.checkpoint.binding import format_of
from moecli.checkpoint.folder import Checkpoint
from moecli.errors import CheckpointError
from moecli.formats import bytes_for
from moecli.formats.blocks import ROWS
from moecli.store.expert_record import WHOLE
from moecli.store.jobs import Job
from moecli.store.pack_rows import read_kept

if TYPE_CHECKING:
    from torch import Tensor

    from moecli.formats.published import Blocks

_STRIP = 2**24  # numbers read at once


@dataclass(frozen=True, slots=True)
class Strip:
    """Some rows of a job. A vector is one row; so is a matrix that can only be packed whole."""

    job: Job
    first: int
    last: int

    @property
    def offset(self) -> int:
        """Where its bytes go in the job's file."""
        return self.job.offset + (bytes_for(self.job.dtype, (self.first, self.job.shape[-1])) if self.first else 0)

    @property
    def read_size(self) -> int:
        """Its share of what the job reads."""
        rows, size = self.job.shape[0], self.job.read_size
        return size * self.last // rows - size * self.first // rows

    @property
    def is_last(self) -> bool:
        return self.last == self.job.shape[0]


def packed_strips(todo: Iterable[Job], checkpoint: Checkpoint) -> Iterator[tuple[Strip, memoryview]]:
    """The bytes of each strip, in order. Memory: three strips of 2**24 numbers, or matrices if those are larger.

    CheckpointError where a file cannot be read or a weight cannot be packed.
    """
    with ThreadPoolExecutor(1, "moecli-pack-reader") as reader:
        ahead: tuple[Strip, Future[Tensor | Blocks]] | None = None
        for strip in (strip for job in todo for strip in _strips(job)):
            reading = strip, reader.submit(_read, strip, checkpoint)
            if ahead is not None:
                yield _packed(*ahead, checkpoint)
            ahead = reading
        if ahead is not None:
            yield _packed(*ahead, checkpoint)


def _strips(job: Job) -> Iterator[Strip]:
    rows = job.shape[0]
    by_rows = len(job.shape) == 2 and job.dtype not in WHOLE
    step = max(ROWS, _STRIP // job.shape[-1] // ROWS * ROWS) if by_rows else rows
    for first in range(0, rows, step):
        yield Strip(job, first, min(first + step, rows))


def _packed(strip: Strip, reading: Future[Tensor | Blocks], checkpoint: Checkpoint) -> tuple[Strip, memoryview]:
    import torch

    from moecli.formats.published import Blocks
    from moecli.kernels.linear import pack
    from moecli.kernels.native import repack

    found = reading.result()
    try:
        if isinstance(found, Blocks):
            packed = torch.empty(bytes_for(found.dtype, found.shape), dtype=torch.uint8)
            if not repack(found, packed):
                packed = pack(strip.job.dtype, _numbers(strip, checkpoint))  # which says what is wrong
        else:
            packed = pack(strip.job.dtype, found)
    except CheckpointError as error:
        raise CheckpointError(f"{strip.job.name} cannot be packed: {error.message}", error.hint) from error
    return strip, packed.numpy().data


def _read(strip: Strip, checkpoint: Checkpoint) -> Tensor | Blocks:
    """Its numbers; of a matrix that is published in the format, blocks."""
    job = strip.job
    found = None
    if len(job.sources) == 1 and len(job.shape) == 2:
        found = read_kept(job.dtype, checkpoint, job.sources[0], strip.first, strip.last - strip.first)
    return _numbers(strip, checkpoint) if found is None else found


def _numbers(strip: Strip, checkpoint: Checkpoint) -> Tensor:
    """Rows of the stacked sources as [out, in], in the stored precision; float32 where the sources differ."""
    import torch

    from moecli.checkpoint.reading import read_rows
    from moecli.formats.plain import torch_dtype

    job = strip.job
    stored = {format_of(source.stored) for source in job.sources}
    dtype = torch_dtype(stored.pop() if len(stored) == 1 else "fp32")
    rows = torch.empty((strip.last - strip.first, *job.shape[1:]), dtype=dtype)
    start = 0  # of the source, in rows of the stack
    for source in job.sources:
        end = start + math.prod(source.matrix_shape) // math.prod(job.shape[1:])
        first, last = max(start, strip.first), min(end, strip.last)
        if first < last:
            read_rows(rows[first - strip.first : last - strip.first], checkpoint, source, first - start)
        start = end
    return rows
