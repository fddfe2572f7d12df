"""Packing a checkpoint whose shards arrive one by one and leave as soon as they are converted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from moecli.checkpoint.binding import Weights
from moecli.checkpoint.files import SAFETENSORS
from moecli.checkpoint.folder import Checkpoint
from moecli.checkpoint.headers import read_header
from moecli.checkpoint.stored import StoredTensor
from moecli.errors import CheckpointError
from moecli.store.jobs import Job, jobs
from moecli.store.journal import explained
from moecli.store.layout import StoreLayout, safetensors_header
from moecli.store.manifest import Origin
from moecli.store.packed import PackedStore
from moecli.store.progress import Progress, silent
from moecli.store.remove import GROWING
from moecli.store.write import Writer, writing
from moecli.text.files import texts_in

_LEAST_LIVE = 0.75  # of a left-over that is not written anew
_BATCHES = 4  # in which a shard is converted
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
        for path in map(self._left_over, writer.journal.kept):
            self._aside |= read_header(path) if path.exists() else {}
        self._drop_unneeded()

    @property
    def pending(self) -> list[str]:
        """The shards still to come, in the order that leaves least waiting: by the first layer that needs them."""
        return list(dict.fromkeys(stored.path.as_posix() for stored in self._missing()))

    @property
    def packed(self) -> tuple[int, int]:
        """Bytes of the checkpoint packed so far, of how many."""
        return self._writer.packed, self._writer.total

    def take(self, shard: str, path: Path, progress: Progress = silent) -> None:
        """Convert all that this shard completes; when this returns the file is not needed any more.

        CheckpointError if it is damaged or not what its header was announced to be. Taking one twice does no harm.
        """
        here = self._announced(shard, path)
        at_hand = self._aside | here
        ready = [job for job in self._todo.values() if _needs(job) <= at_hand.keys()]
        for batch in _batches(ready, path.stat().st_size // _BATCHES):
            at_hand = self._aside | here  # left-overs may have shrunk
            self._writer.convert([_located(job, at_hand) for job in batch], Checkpoint(at_hand), progress)
            for job in batch:
                del self._todo[job.name]
            self._writer.sync()
            self._drop_unneeded()  # what is put aside leaves as its records come, for the disk may be full
        self._put_aside(shard, here)
        self._writer.sync()
        self._writer.journal.add(kept=[shard])

    def finish(self, folder: Path) -> PackedStore:
        """The store, with the configuration and tokenizer of `folder`, once nothing is pending."""
        if self._todo:
            raise CheckpointError(f"{len(self.pending)} shards were not packed, {self.pending[0]} first")
        return self._writer.finish(texts_in(folder))

    def _missing(self) -> Iterator[StoredTensor]:
        for job in self._todo.values():
            for source in job.sources:
                yield from (part for part in source.stored.parts if part.name not in self._aside)

    def _announced(self, shard: str, path: Path) -> dict[str, StoredTensor]:
        """The tensors of a shard that are still to come, where they really lie."""
        header = {part.name: part for each in read_header(path, shard).values() for part in each.parts}
        found: dict[str, StoredTensor] = {}
        for stored in self._missing():
            if stored.path.as_posix() == shard:
                here = header.get(stored.name)
                if here is None or here.at(stored.path) != stored:
                    raise CheckpointError(f"{path} does not hold '{stored.name}' as was announced", "fetch it again")
                found[here.name] = here
        return found

    def _put_aside(self, shard: str, here: Mapping[str, StoredTensor]) -> None:
        waiting = {stored.name for stored in self._missing()} & here.keys()
        if not waiting:
            return
        self._aside |= _written(self._left_over(shard), [here[name] for name in sorted(waiting)])

    def _drop_unneeded(self) -> None:
        """Forget what no job waits for any more: left-overs that hold much of it shrink, those with nothing else go."""
        needed = set().union(*map(_needs, self._todo.values()))
        kept = {name: stored for name, stored in self._aside.items() if name in needed}
        for path in {stored.path for stored in self._aside.values()} - {stored.path for stored in kept.values()}:
            path.unlink()
        self._aside = kept
        for path in {stored.path for stored in kept.values()}:
            live = [stored for stored in kept.values() if stored.path == path]
            if sum(stored.size for stored in live) < _LEAST_LIVE * path.stat().st_size:
                self._aside |= _written(path, live)

    def _left_over(self, shard: str) -> Path:
        suffix = "" if SAFETENSORS.holds(shard) else ".safetensors"
        return self._writer.folder / f"{_LEFT_OVER}{shard.replace('/', '-')}{suffix}"


def _written(path: Path, tensors: list[StoredTensor]) -> dict[str, StoredTensor]:
    """A left-over of these tensors, where they lie in it; it may take the place of one that holds them."""
    growing, checkpoint = path.with_suffix(GROWING), Checkpoint({})
    with explained(path.parent), growing.open("wb") as file:
        file.write(safetensors_header([(each.name, each.dtype, each.shape) for each in tensors]))
        for tensor in tensors:
            data = bytearray(tensor.size)
            checkpoint.read_into(memoryview(data), tensor)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    growing.replace(path)
    return read_header(path)


def _batches(ready: Iterable[Job], size: int) -> Iterator[list[Job]]:
    """Jobs in their order, in groups that read at least `size` bytes but for the last."""
    batch: list[Job] = []
    read = 0
    for job in ready:
        batch.append(job)
        read += job.read_size
        if read >= size:
            yield batch
            batch, read = [], 0
    if batch:
        yield batch


def _needs(job: Job) -> set[str]:
    return {part.name for source in job.sources for part in source.stored.parts}


def _located(job: Job, at_hand: Mapping[str, StoredTensor]) -> Job:
    """The job with its sources where they lie now."""

    def here(part: StoredTensor) -> StoredTensor:
        return replace(part, path=at_hand[part.name].path, offset=at_hand[part.name].offset)

    sources = tuple(replace(each, stored=each.stored.located(here)) for each in job.sources)
    return replace(job, sources=sources)
