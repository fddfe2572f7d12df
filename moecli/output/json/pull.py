"""`pull --json`: what would be fetched, or what was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
        "runnable": not proposal.lacks,
        "lacks": list(proposal.lacks),
        "dtype": one.memory.dtype,
        "peak_rss_bytes": one.memory.peak,
        "fits": one.plan.fits,
        "runs": one.plan.runs,
        "speed": speed(one.speed),
        "doubts": proposal.doubts,
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
