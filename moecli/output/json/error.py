"""What any command prints with --json where it fails: the error as a document."""

from __future__ import annotations

from typing import Any

from moecli.errors import MoecliError, printable
from moecli.output.json import SCHEMA_VERSION


def document(error: MoecliError) -> dict[str, Any]:
    """`kind` is one of the classes of moecli/errors.py; `hint` is null where there is none."""
    return {
        "schema_version": SCHEMA_VERSION,
        "error": {
            "kind": type(error).__name__,
            "message": printable(error.message),
            "hint": None if error.hint is None else printable(error.hint),
            "exit_code": error.exit_code,
        },
    }
