"""A model from the Hub straight into a packed store: shard in, records out, shard deleted.

Shards arrive in the folder of the unfinished store, not in the Hugging Face cache: what lies there is nobody else's and
can be deleted, also by the run after one that was killed. A shard that the cache holds is packed from there, and stays.
"""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from moecli.checkpoint.binding import Weights
from moecli.checkpoint.folder import merged
from moecli.checkpoint.stored import StoredTensor
from moecli.errors import CheckpointError
from moecli.hub import download
from moecli.hub.cache import UNFINISHED
from moecli.hub.manifest import DownloadManifest, RemoteFile
from moecli.hub.retry import RetryPolicy, Tell
from moecli.hub.supplement import supply
from moecli.hub.transfer import Transfer, Watcher
from moecli.library import stores
from moecli.library.pull import Proposal, propose
from moecli.library.resolve import ModelRef
from moecli.library.tokenizers import lay
from moecli.planning.estimate import Budget, estimate_one
from moecli.planning.memory import default_context
from moecli.store import journal
from moecli.store.filesystem import free_space
from moecli.store.incremental import packing_shards
from moecli.store.jobs import jobs
from moecli.store.layout import StoreLayout, choose_layout
from moecli.store.manifest import Origin
from moecli.store.packed import PackedStore
from moecli.store.progress import Progress, silent
from moecli.store.source import announced, header_fingerprint
from moecli.store.write import check_room, existing, partial_folder, room_needed
from moecli.text.files import is_text

_ARRIVING = "arriving-"  # begins the name of a shard that is deleted once it is packed


@dataclass(frozen=True, slots=True)
class PackedPull:
    """One pull into a store at `target`; `store` is there if it was done before."""

    ref: ModelRef
    proposal: Proposal  # of what is still to be done
    target: Path
    weights: Weights
    layout: StoreLayout
    origin: Origin
    keep: bool  # the original, in the Hugging Face cache
    files: tuple[RemoteFile, ...]  # to be gone through, in this order; some may lie in the cache
    shards_room: int  # what they take on the target's disk, at most
    store: PackedStore | None


def propose_packed(
    ref: ModelRef,
    dtype: str,
    target: Path | None = None,
    keep: bool = False,
    tell: Tell | None = None,
    budget: Budget | None = None,
    context: int | None = None,
) -> PackedPull:
    """Ask the Hub about a model and the headers of its shards; "auto" is `Weights.packed_dtype`.

    ConfigError or CheckpointError for what cannot be packed, DiskError if `target` is something else.
    """
    proposal = propose(ref, tell, dtype, packed=True, budget=budget, context=context)
    manifest = proposal.manifest
    if not keep:
        manifest = replace(manifest, texts=tuple(file for file in manifest.texts if is_text(file.name)))
    weights = announced(ref.name, manifest.config, partial(_tensors, manifest, tell))
    layout = choose_layout(weights, weights.packed_dtype if dtype == "auto" else dtype)
    if dtype == "auto" and layout.dtype != weights.dtype:
        budget, context = budget or Budget.of(), context or default_context(weights.spec)
        proposal = replace(proposal, estimate=estimate_one(weights.spec, budget, layout.dtype, context))
    target = target or stores.default_folder(ref.name, layout.dtype)
    fingerprint = header_fingerprint(weights.checkpoint.tensors.values())
    origin = Origin(ref.name, manifest.repo, manifest.commit, None, fingerprint)
    _refuse_another_revision(target, origin)
    store = existing(target, layout, origin)
    files = () if store else _files(manifest, _pending(target, weights, layout, origin), keep)
    missing = {file: _missing(manifest, file, partial_folder(target), keep) for file in files}
    shards_room = _shards_room(manifest, target, keep, missing)
    proposal = replace(
        proposal,
        manifest=manifest,
        present=manifest.bytes - sum(missing.values()),
        room=0 if store else room_needed(target, layout) + shards_room,
        free=free_space(target.absolute()),
    )
    return PackedPull(ref, proposal, target, weights, layout, origin, keep, files, shards_room, store)


def check_space(pull: PackedPull) -> None:
    """DiskError unless the store and the shards that lie beside it fit their disks."""
    check_room(pull.target, pull.layout, pull.shards_room)
    if pull.keep and not pull.shards_room:
        download.check_space(pull.proposal.manifest, pull.files)


def pull_packed(
    pull: PackedPull, watcher: Watcher, progress: Progress = silent, policy: RetryPolicy | None = None
) -> PackedStore:
    """Fetch and pack; one shard arrives while another is packed. Whatever stops it, the same call goes on."""
    if pull.store is not None:
        return pull.store
    manifest, keep, folder = pull.proposal.manifest, pull.keep, partial_folder(pull.target)
    with packing_shards(pull.target, pull.weights, pull.layout, pull.origin) as packer:
        pending = packer.pending
        _delete_packed(folder, [] if keep else pending)
        progress(*packer.packed)
        files, texts = _files(manifest, pending, keep), manifest.snapshot if keep else folder
        supply(manifest, texts)
        place = None if keep else _Place(folder)
        with closing(download.each(manifest, files, watcher, 1, policy, place)) as arriving:
            for file, path in arriving:
                if file.name in pending:
                    packer.take(file.name, path, progress)
                if path.name.startswith(_ARRIVING):
                    path.unlink()
        if keep:
            download.write_ref(manifest)
        lay(pull.ref, texts)
        return packer.finish(texts)


@dataclass(frozen=True, slots=True)
class _Place:
    """Brings a file into the folder of the unfinished store, unless it is a shard that the cache holds."""

    folder: Path

    def __call__(self, manifest: DownloadManifest, file: RemoteFile, transfer: Transfer) -> Path:
        path = _arrival(self.folder, file)
        cached = download.cached(manifest, file)
        if cached is None and not download.is_whole(path, file):
            transfer.fetch(file, path)
            return path
        transfer.watcher.found(file, file.size)
        if cached is None:
            return path
        return Path(shutil.copyfile(cached, path)) if file in manifest.texts else cached


def _tensors(manifest: DownloadManifest, tell: Tell | None) -> dict[str, StoredTensor]:
    """What all shards hold. Of a name that two of them hold the index says which copy counts."""
    return merged(download.headers(manifest, tell), manifest.index or {})


def _refuse_another_revision(target: Path, origin: Origin) -> None:
    """A branch that has moved meanwhile: the shards packed so far are not those of the new commit."""
    partial = partial_folder(target)
    match journal.read_plan(partial):
        case {"origin": {"repo": origin.repo, "revision": str(begun)}} if begun != origin.revision:
            raise CheckpointError(
                f"{partial} was begun from {begun[:12]} of {origin.repo}, which is now at {str(origin.revision)[:12]}",
                f"go on with {origin.model}@{begun}, or begin again after moecli rm {partial}",
            )


def _pending(target: Path, weights: Weights, layout: StoreLayout, origin: Origin) -> list[str]:
    """The shards that are still to be packed. Nothing is begun for that."""
    if journal.read_plan(partial_folder(target)) is None:
        sources = (source for job in jobs(weights, layout) for source in job.sources)
        return list(dict.fromkeys(part.path.as_posix() for source in sources for part in source.stored.parts))
    with packing_shards(target, weights, layout, origin) as packer:
        return packer.pending


def _files(manifest: DownloadManifest, pending: list[str], keep: bool) -> tuple[RemoteFile, ...]:
    """Small files first, then shards in the order that packing wants them; with `keep` whatever else there is."""
    weights = {file.name: file for file in manifest.weights}
    rest = [file for file in manifest.weights if keep and file.name not in pending]
    return (*manifest.texts, *(weights[name] for name in pending), *rest)


def _missing(manifest: DownloadManifest, file: RemoteFile, folder: Path, keep: bool) -> int:
    """Bytes of a file that are still to be fetched."""
    path = _arrival(folder, file)
    if keep:
        return file.size - download.present(manifest, file)
    here = download.is_whole(path, file) or download.cached(manifest, file) is not None
    return 0 if here else file.size - download.unfinished(path, file)


def _shards_room(manifest: DownloadManifest, target: Path, keep: bool, missing: dict[RemoteFile, int]) -> int:
    """What the two largest shards still take beside the store; with `keep` all, if the cache is on the same disk."""
    if keep:
        return sum(missing.values()) if download.share_a_disk(manifest.root, target.absolute()) else 0
    return sum(sorted((missing[file] for file in manifest.weights if file in missing), reverse=True)[:2])


def _delete_packed(folder: Path, pending: list[str]) -> None:
    """The shards that a killed run had packed and did not come to delete."""
    kept = set(map(_arriving, pending))
    for path in folder.glob(f"{_ARRIVING}*"):
        if path.name.removesuffix(UNFINISHED) not in kept:
            path.unlink()


def _arrival(folder: Path, file: RemoteFile) -> Path:
    """Small files have the name that they will keep."""
    return folder / (file.name if is_text(file.name) else _arriving(file.name))


def _arriving(name: str) -> str:
    """What a shard is called until it is packed."""
    return f"{_ARRIVING}{name.replace('/', '-')}"
