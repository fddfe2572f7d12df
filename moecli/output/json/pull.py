"""`pull --json`: what would be fetched, or what was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moecli.library.advice import Advice
from moecli.library.pull import Proposal
from moecli.library.pull_packed import PackedPull
from moecli.output.json import SCHEMA_VERSION, pack
from moecli.output.json.shared import speed
from moecli.store.packed import PackedStore

if TYPE_CHECKING:
    from moecli.output.pack import Account


def proposed(pull: Proposal | PackedPull) -> dict[str, Any]:
    """`pull --dry-run --json`: nothing was fetched yet."""
    proposal = pull if isinstance(pull, Proposal) else pull.proposal
    manifest, one = proposal.manifest, proposal.estimate
    return {
        **_files(proposal),
        **(_store(pull) if isinstance(pull, PackedPull) else {}),
        "download_bytes": proposal.missing,
        "cached_bytes": proposal.present,
        "free_bytes": proposal.free,
        "license": manifest.licence,
        "gated": manifest.gated,
        "tokenizer": proposal.own_tokenizer,
        "runnable": not proposal.lacks,
        "lacks": list(proposal.lacks),
        "dtype": one.memory.dtype,
        "peak_rss_bytes": one.memory.peak,
        "fits": one.plan.fits,
        "runs": proposal.runs,
        "has_room": proposal.has_room,
        "speed": speed(one.speed),
        "doubts": proposal.doubts,
    }


def estimated(guess: Advice, why: str) -> dict[str, Any]:
    """The same by the catalog, where the Hub could not be asked: no files, and all sizes are estimates."""
    (way,) = guess.ways
    entry = guess.ref.entry
    return {
        "schema_version": SCHEMA_VERSION,
        "name": guess.ref.name,
        "source": guess.ref.repo,
        "revision": guess.ref.revision,
        "estimated": True,
        "reason": why,
        "path": None,
        "bytes": way.keep,
        "files": [],
        **({"source_bytes": way.fetch, "disk_bytes": way.room} if way.packed else {}),
        "download_bytes": way.fetch,
        "cached_bytes": 0,
        "free_bytes": way.free,
        "license": entry.licence if entry else None,
        "gated": None,
        "runnable": not guess.lacks,
        "lacks": list(guess.lacks),
        "dtype": way.dtype,
        "peak_rss_bytes": way.estimate.memory.peak,
        "fits": way.plan.fits,
        "runs": way.runs,
        "has_room": way.has_room,
        "speed": speed(way.estimate.speed),
        "doubts": [],
    }


def fetched(proposal: Proposal) -> dict[str, Any]:
    """`pull --json`: the files, and how much of them was not here before."""
    return _files(proposal) | {"downloaded_bytes": proposal.missing}


def packed(pull: PackedPull, store: PackedStore, watch: Account) -> dict[str, Any]:
    """`pull --dtype q4 --json`: the store, as `pack --json` shows it, and how much was fetched for it."""
    return pack.document(store, watch) | {"downloaded_bytes": pull.proposal.missing}


def _files(proposal: Proposal) -> dict[str, Any]:
    manifest = proposal.manifest
    return {
        "schema_version": SCHEMA_VERSION,
        "name": proposal.name,
        "source": manifest.repo,
        "revision": manifest.commit,
        "path": str(manifest.snapshot),
        "bytes": manifest.bytes,
        "files": [{"name": file.name, "bytes": file.size, "hash": file.hash} for file in manifest.files],
    }


def _store(pull: PackedPull) -> dict[str, Any]:
    """Instead of the path and the size of the download, those of the store."""
    return {
        "path": str(pull.target),
        "bytes": sum(pull.layout.sizes.values()),
        "source_bytes": pull.proposal.manifest.bytes,
        "disk_bytes": pull.proposal.room,
    }
