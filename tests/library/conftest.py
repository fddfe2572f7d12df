"""A small checkpoint and its packed model, as the tests of the store have them."""

from tests.store.conftest import checkpoint, store

__all__ = ["checkpoint", "store"]
