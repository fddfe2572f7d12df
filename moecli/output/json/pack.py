"""`pack --json`: the packed model, and what was packed now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moecli.output.json import SCHEMA_VERSION
from moecli.store.packed import PackedStore

if TYPE_CHECKING:
    from moecli.output.pack import Account
    from moecli.store.cost import Cost


def document(store: PackedStore, watch: Account, cost: Cost | None = None) -> dict[str, Any]:
    """`packed_bytes` are those of the source that this run packed: an earlier, interrupted one may have begun.

    `conversion_error` is what a quantised source lost: null where it was plain.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "name": store.name,
        "path": str(store.folder),
        "dtype": store.dtype,
        "bytes": store.bytes,
        "source": store.source.repo or store.source.path,
        "revision": store.source.revision,
        "source_bytes": watch.source_bytes,
        "dtypes": dict(store.layout.roles),
        "packed_bytes": 0 if watch.resumed_bytes is None else watch.source_bytes - watch.resumed_bytes,
        "elapsed_s": watch.seconds,
        "conversion_error": None if cost is None else cost.error,
    }
