"""What a recurrent layer remembers of one text: a state that cannot be taken back, and a few kept to go back to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moecli.kernels.blocking import BLOCK, SNAPSHOTS
from moecli.model.spec import Recurrent
from moecli.planning.states import record_shape, rows_shape, state_shape

if TYPE_CHECKING:
    from moecli.engine.cache import MixerCache


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was remembered after `length` tokens."""

    length: int
    rows: Tensor
    state: Tensor


class RecurrentCache:
    """What one layer remembers, in float32.

    A step of several tokens may be taken back, so it leaves `rows` and `state` as they were and only writes down what
    the recurrence saw of its tokens: they are pending. The next step takes those that were kept for its own first ones.
    """

    def __init__(self, spec: Recurrent, device: torch.device) -> None:
        self._past = spec.kernel - 1
        self.rows = torch.zeros(rows_shape(spec), device=device)
        self.state = torch.zeros(state_shape(spec), device=device)
        self.record = torch.zeros(record_shape(spec), device=device)
        self.length = 0  # positions seen
        self.pending = 0  # of them, that the state does not hold yet
        self._snapshots: list[Snapshot] = []  # by length
        self._spare: list[tuple[Tensor, Tensor]] = []  # memory of snapshots that were dropped

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """All that it holds but snapshots."""
        return self.rows, self.state, self.record

    def extend(self, tokens: int, commits: bool) -> int:
        """Count tokens that come next; returns how many before them are pending, and then part of the state.

        Unless it `commits`, the new ones are pending.
        """
        kept, self.pending = self.pending, 0 if commits else tokens
        self.length += tokens
        return kept

    @property
    def kept_of_a_pass(self) -> int:
        """Tokens that may be read at once so that the state after them is there: of those of one step."""
        return BLOCK

    @property
    def row_bytes(self) -> int:
        """Bytes of a block of `block` for each of its tokens, at most."""
        return self.rows[: self._past].nbytes + self.state.nbytes

    def block(self, start: int, end: int) -> dict[str, Tensor] | None:
        """What is remembered after `end` tokens, by name; None where that is not known any more."""
        if end == self.length and not self.pending:
            return {"rows": self.rows[: self._past], "state": self.state}
        kept = next((each for each in self._snapshots if each.length == end), None)
        return None if kept is None else {"rows": kept.rows, "state": kept.state}

    def suits(self, block: Mapping[str, Tensor], tokens: int) -> bool:
        """Whether this is what `block` gives of such a layer."""
        wanted = {"rows": self.rows[: self._past], "state": self.state}
        return block.keys() == wanted.keys() and all(
            block[name].shape == mine.shape and block[name].dtype is mine.dtype for name, mine in wanted.items()
        )

    def put(self, block: Mapping[str, Tensor], tokens: int, chunk: int) -> None:
        """Remember what a block that suits does, so many tokens further, and be able to go back to them."""
        self._load(Snapshot(self.length + tokens, block["rows"], block["state"]))
        self.length += tokens
        self.snapshot()

    def reach(self, length: int) -> int:
        """How much of the first `length` tokens it can go back to."""
        if self.length - self.pending <= length <= self.length:
            return length
        return max((each.length for each in self._snapshots if each.length <= length), default=0)

    def rewind(self, length: int) -> None:
        """Forget all after `length` tokens, which it can `reach`."""
        if length >= self.length - self.pending and length:
            self.pending -= self.length - length
        elif length:
            self._load(next(each for each in self._snapshots if each.length == length))
        else:
            self.clear()
        self.length = length
        while self._snapshots and self._snapshots[-1].length > length:
            self._drop(-1)

    def clear(self) -> None:
        """Forget every position."""
        self.rows.zero_()
        self.state.zero_()
        self.length = self.pending = 0
        while self._snapshots:
            self._drop(-1)

    def copy(self, other: MixerCache, length: int) -> None:
        """Hold the first `length` positions of `other`, which that can `reach`, and be able to go back to them."""
        assert isinstance(other, RecurrentCache)
        self.clear()
        if not length:
            return
        if length >= other.length - other.pending:
            self._load(Snapshot(length, other.rows[: self._past], other.state))
            self.rows.copy_(other.rows)
            self.record.copy_(other.record)
            self.pending = length - (other.length - other.pending)
        else:
            self._load(next(each for each in other._snapshots if each.length == length))
        self.length = length
        self.snapshot()

    def snapshot(self) -> None:
        """Keep what is remembered now, if that is all in the state."""
        if self.pending or not self.length or (self._snapshots and self._snapshots[-1].length == self.length):
            return
        if len(self._snapshots) == SNAPSHOTS:
            self._drop(self._least_missed())
        rows, state = self._spare.pop() if self._spare else (torch.empty_like(self.rows[: self._past]), None)
        state = torch.empty_like(self.state) if state is None else state
        self._snapshots.append(Snapshot(self.length, rows.copy_(self.rows[: self._past]), state.copy_(self.state)))

    def _least_missed(self) -> int:
        """The snapshot whose neighbours are nearest, seen from the end: the others stand ever further apart."""
        back = [self.length + 1, *(self.length + 1 - each.length for each in self._snapshots), 1]
        return min(range(len(self._snapshots)), key=lambda i: back[i] / back[i + 2])

    def _drop(self, index: int) -> None:
        dropped = self._snapshots.pop(index)
        self._spare.append((dropped.rows, dropped.state))

    def _load(self, snapshot: Snapshot) -> None:
        self.rows[: self._past] = snapshot.rows
        self.state.copy_(snapshot.state)
        self.pending = 0
