"""What a layer with a recurrent mixer remembers of one text, whatever its length: shapes, and how many numbers."""

from __future__ import annotations

import math

from moecli.kernels.blocking import MAX_TOKENS, SNAPSHOTS, STATE_TILE
from moecli.model.spec import Recurrent, RecurrentKind

Shape = tuple[int, ...]


def rows_shape(recurrent: Recurrent) -> Shape:
    """What the convolution saw last, and of the last step, which may be forgotten: [kernel - 1 + tokens, channels]."""
    return recurrent.kernel - 1 + MAX_TOKENS, recurrent.channels


def record_shape(recurrent: Recurrent) -> Shape:
    """What the recurrence saw of that step's tokens: [tokens, operands]."""
    return MAX_TOKENS, recurrent.operands


def state_shape(recurrent: Recurrent) -> Shape:
    """The state as kernels have it: some columns of a head together, [tiles, state_dim, STATE_TILE]."""
    alone = recurrent.kind is RecurrentKind.MAMBA  # each channel is a head
    heads, columns = (1, recurrent.inner) if alone else (recurrent.heads, recurrent.head_dim)
    return heads * -(-columns // STATE_TILE), recurrent.state_dim, STATE_TILE


def numbers(recurrent: Recurrent) -> int:
    """All of it, in float32, and the snapshots that a text can be taken back to."""
    if not recurrent.heads:  # no engine runs it: its state alone is known
        return recurrent.state
    rows, state = math.prod(rows_shape(recurrent)), math.prod(state_shape(recurrent))
    snapshot = (recurrent.kernel - 1) * recurrent.channels + state
    return rows + math.prod(record_shape(recurrent)) + state + SNAPSHOTS * snapshot
