"""`doctor --json`: the machine as it was found, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moecli.doctor.examination import Examination
from moecli.doctor.problem import Problem
from moecli.output.json import SCHEMA_VERSION


def document(found: Examination, wrong: Sequence[Problem]) -> dict[str, Any]:
    """All facts of the examination by their own names."""
    facts: dict[str, Any] = _plain(asdict(found))
    return {"schema_version": SCHEMA_VERSION, **facts, "problems": [asdict(problem) for problem in wrong]}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value
