"""`verify --json`: each file of a model, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moecli.library.verification import Checked, Subject
from moecli.output.json import SCHEMA_VERSION


def document(subject: Subject, results: Sequence[Checked], removed: bool) -> dict[str, Any]:
    """`removed`: whether damaged files were deleted."""
    return {
        "schema_version": SCHEMA_VERSION,
        "name": subject.name,
        "source": subject.source,
        "revision": subject.revision,
        "path": str(subject.path),
        "bytes": sum(result.bytes for result in results),
        "intact": not any(result.problem for result in results),
        "removed": removed,
        "files": [
            {
                "name": result.name,
                "path": str(result.path),
                "bytes": result.bytes,
                "problem": result.problem,
                "hashed": result.hashed,
            }
            for result in results
        ],
    }
