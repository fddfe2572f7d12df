"""Packing a checkpoint whose shards arrive one by one and leave as soon as they are converted."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from moecli.checkpoint import Checkpoint, StoredTensor, read_header
from moecli.errors import CheckpointError
from moecli.store.jobs import Job, jobs
from moecli.store.journal import sync_folder
from moecli.store.layout import StoreLayout, safetensors_header
from moecli.store.manifest import Origin
from moecli.store.packed import PackedStore
from moecli.store.source import text_files
from moecli.store.write import Progress, Writer, silent, writing
from moecli.weights import Weights

_LEFT_OVER = "left-over-"  # begins the name of a shard shrunk to what is still needed of it


@contextlib.contextmanager
def packing_shards(target: Path, weights: Weights, layout: StoreLayout, origin: Origin) -> Iterator[ShardPacker]:
    """Begin or go on. `weights` are as announced by the headers of the shards, none of which has to be here."""
    with writing(target, layout, origin, jobs(weights, layout)) as writer:
        yield ShardPacker(writer)


class ShardPacker:
    """Converts what each shard completes. A tensor that must wait for others is put aside, so no shard is kept for it.

    Headers are the truth: where an index says a tensor lies does not matter.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._todo = {job.name: job for job in writer.todo}
        self._aside: dict[str, StoredTensor] = {}
        for shard in writer.journal.kept:
            self._aside |= read_header(self._left_over(shard))

    @property
    def pending(self) -> list[str]:
        """The shards still to come, in the order that leaves least waiting: by the first layer that needs them."""
        return list(dict.fromkeys(stored.path.name for stored in self._missing()))

    @property
    def packed(self) -> tuple[int, int]:
        """Bytes of the checkpoint packed so far, of how many."""
        return self._writer.packed, self._writer.total

    def take(self, path: Path, progress: Progress = silent) -> None:
        """Convert all that this shard completes; when this returns the file is not needed any more.

        CheckpointError if it is damaged or not what its header was announced to be. Taking one twice does no harm.
        """
        here = self._announced(path)
        at_hand = self._aside | here
        ready = [job for job in self._todo.values() if all(source.stored.name in at_hand for source in job.sources)]
        located = [_located(job, at_hand) for job in ready]
        self._writer.convert(located, Checkpoint(at_hand), progress)
        for job in ready:
            del self._todo[job.name]
        self._put_aside(path.name, here)
        self._writer.sync(...)
