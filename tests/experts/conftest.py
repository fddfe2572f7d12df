"""Packed stores of tiny models."""

from __future__ import annotations

from functools import cache

import pytest

from moecli.store.packed import PackedStore
from tests.support.checkpoints import make, write
from tests.support.stores import Stores, packed


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    """Packed once per family and format, and not to be changed; the checkpoint lies beside the store."""
    root = tmp_path_factory.mktemp("stores")

    @cache
    def store(family: str, dtype: str) -> PackedStore:
        folder = root / family
        if not folder.exists():
            write(make(family), folder)
        return packed(folder, root / f"{family}-{dtype}", dtype)

    return store
