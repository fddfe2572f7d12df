"""`rm --json`: what was deleted, and the bytes that this freed."""

from __future__ import annotations

from typing import Any

from moecli.library.removal import Removal, StoreRemoval
from moecli.output.json import SCHEMA_VERSION


def document(removed: Removal | StoreRemoval) -> dict[str, Any]:
    """`kept_bytes` are shared with other revisions, and stay."""
    return {
        "schema_version": SCHEMA_VERSION,
        "name": removed.name,
        "source": removed.source,
        "revisions": list(removed.revisions),
        "freed_bytes": removed.bytes,
        "kept_bytes": removed.kept_bytes,
    }
