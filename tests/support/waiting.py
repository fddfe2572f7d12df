"""Waiting for what another program writes."""

from __future__ import annotations

import select


def readable(descriptor: int, seconds: float) -> bool:
    """Whether something comes, or the end, within so many seconds; unlike select, for descriptors beyond 1,024 too."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
