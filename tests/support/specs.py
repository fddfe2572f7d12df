"""Specs of the catalog's models."""

from __future__ import annotations

from moecli.model import catalog, families
from moecli.model.spec import ModelSpec


def spec_of(alias: str, **changes: object) -> ModelSpec:
    """As its bundled config.json says, with these keys changed."""
    entry = catalog.find(alias)
    assert entry is not None, alias
    return families.read_spec(entry.config() | changes)
