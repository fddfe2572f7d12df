"""What packing did to the weights: those of a store held against those it was made of, on a sample of both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moecli.checkpoint.binding import Weights
from moecli.errors import reading
from moecli.formats import bytes_for
from moecli.formats.blocks import ROWS
from moecli.store.expert_record import WHOLE
from moecli.store.jobs import Job, jobs
from moecli.store.packed import PackedStore

if TYPE_CHECKING:
    from torch import Tensor

_SAMPLE = 64  # matrices


@dataclass(frozen=True, slots=True)
class Cost:
    """`error` is the root mean square of all changes, as a share of that of the weights."""

    error: float
    measured: int
    matrices: int


def measure(weights: Weights, store: PackedStore) -> Cost:
    """The first rows of matrices from all parts of the model. CheckpointError where they cannot be read."""
    every = [job for job in jobs(weights, store.layout) if len(job.shape) == 2]
    step = max(1, -(-len(every) // _SAMPLE))
    sample = every[step // 2 :: step]
    changed = size = 0.0
    for job in sample:
        before, after = _before(job, weights), _after(job, store)
        changed += float((after - before).square().sum(dtype=before.dtype))
        size += float(before.square().sum())
    return Cost(math.sqrt(changed / size) if size else 0.0, len(sample), len(every))


def _before(job: Job, weights: Weights) -> Tensor:
    """The first rows of a matrix as they were, in float64."""
    import torch

    from moecli.checkpoint.reading import read_rows

    source = job.sources[0]
    rows = torch.empty((min(ROWS, source.matrix_shape[0]), job.shape[1]), dtype=torch.float32)
    read_rows(rows, weights.checkpoint, source)
    return rows.double()


def _after(job: Job, store: PackedStore) -> Tensor:
    """As many as they are now."""
    import torch

    from moecli.formats import unpack_rows

    rows, columns = min(ROWS, job.sources[0].matrix_shape[0]), job.shape[1]
    held = job.shape[0] if job.dtype in WHOLE else min(-(-rows // ROWS) * ROWS, job.shape[0])
    packed = torch.empty(bytes_for(job.dtype, (held, columns)), dtype=torch.uint8)
    path = store.folder / job.file
    with reading(path), path.open("rb", buffering=0) as file:
        file.seek(job.offset)
        file.readinto(packed.numpy().data)
    return unpack_rows(job.dtype, packed, (held, columns), torch.float32, 0, held)[:rows].double()
