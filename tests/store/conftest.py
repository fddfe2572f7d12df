"""A small checkpoint, and the store packed from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from moecli.store.packed import PackedStore
from tests.support.stores import packed, random_mixtral


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mixtral of five layers in six shards."""
    return random_mixtral(tmp_path_factory.mktemp("source") / "five-layers")


@pytest.fixture(scope="session")
def store(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> PackedStore:
    """It in q4, never interrupted. Not to be changed."""
    return packed(checkpoint, tmp_path_factory.mktemp("stores") / "five-layers-q4")
