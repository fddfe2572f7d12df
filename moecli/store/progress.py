"""How far long work is: the callback that is told, and one that says nothing."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]  # done, of how many: bytes, tokens or layers


def silent(done: int, total: int) -> None:
    """For work that nobody watches."""
