"""`list --json`: the models on this machine, or all that have an alias."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from moecli.library.listing import Here, Known
from moecli.output.json import SCHEMA_VERSION


def here(models: Sequence[Here]) -> list[dict[str, Any]]:
    """The models on this machine."""
    return [
        {
            "schema_version": SCHEMA_VERSION,
            "name": model.name,
            "format": model.format,
            "bytes": model.bytes,
            "path": str(model.path),
            "source": model.source,
            "revision": model.revision,
            "complete": model.complete,
            "damaged": model.damaged,
            "stands_for": model.stands_for,
            "revisions": list(model.revisions),
            "partial_bytes": model.partial_bytes,
            "last_used": None if model.last_used is None else _iso(model.last_used),
        }
        for model in models
    ]


def known(models: Sequence[Known]) -> list[dict[str, Any]]:
    """`list --known --json`: the catalog."""
    return [
        {
            "schema_version": SCHEMA_VERSION,
            "name": model.alias,
            "names": list(model.entry.names) if model.entry else [],
            "repository": model.entry.repo if model.entry else None,
            "revision": model.entry.revision if model.entry else None,
            "license": model.entry.licence if model.entry else None,
            "kind": model.entry.kind if model.entry else "moe",
            "config_status": model.entry.config_status if model.entry else "published",
            "family": model.family,
            "total": model.total,
            "active": model.active,
            "runnable": not model.lacks,
            "lacks": list(model.lacks),
            "q4_bytes": model.q4_bytes,
            "fits_here": model.best.runs_from if model.best else None,
            "recommended_dtype": model.best.memory.dtype if model.best else None,
        }
        for model in models
    ]


def _iso(when: float) -> str:
    return datetime.fromtimestamp(when, timezone.utc).isoformat(timespec="seconds")
