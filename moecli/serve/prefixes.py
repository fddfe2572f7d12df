"""A pool of caches: a prompt that begins like an earlier text reads only what is new, and gives the same bits.

The bits of a prompt depend on the pieces in which it is read, and those of an answer are made by other kernels than
those of a prompt. So every prompt is read in pieces that end at multiples of one block, whatever was cached, and what
is used again are whole blocks that were read as part of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from moecli.engine.cache import Cache


def piece_ends(length: int, block: int, step: int) -> list[int]:
    """Where the pieces of a prompt end: at each `block` tokens and at its `length`.

    A rest of at most `step` tokens, which the decoder would take for a decode step, joins the piece before.
    """
    ends = [*range(block, length, block), length]
    if len(ends) > 1 and length - ends[-2] <= step:
        del ends[-2]
    return ends


class Slot:
    """A cache, and the ids that it holds: of these the first `whole` are blocks that any prompt may share."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.ids: list[int] = []
        self.whole = 0
        self.taken = False
        self.used = 0  # the higher, the later

    def clear(self) -> None:
        """Hold nothing: what it held is another text's, or was torn by a pass that did not end."""
        self.cache.rewind(0)
        self.ids.clear()
        self.whole = 0


class Slots:
    """As many texts as are generated side by side; each keeps its cache when it is over, until another needs it."""

    def __init__(self, caches: Sequence[Cache], block: int, step: int) -> None:
        """`block`, `step`: see `piece_ends`."""
        self._slots = [Slot(cache) for cache in caches]
        self._block, self._step = block, step
        self._clock = count(1)

    def take(self, prompt: Sequence[int]) -> tuple[Slot, list[int]] | None:
        """A slot that holds as much of the prompt as is known, and where its pieces end; None while all are taken.

        What another text still needs is copied: blocks of a slot that is taken, or that holds much more than is shared.
        """
        free = [slot for slot in self._slots if not slot.taken]
        if not free:
            return None
        ends = piece_ends(len(prompt), self._block, self._step)
        source = max(self._slots, key=lambda slot: (self._shared(slot, prompt, ends), not slot.taken))
        shared = self._shared(source, prompt, ends)
        slot = source
        if not shared or source.taken or 2 * shared < source.whole:
            slot = min(free, key=lambda slot: slot.used)
        copied = shared and slot is not source
        kept = slot.cache.copy(source.cache, shared) if copied else slot.cache.rewind(shared)
        while kept not in (0, *ends):  # a state was kept at this length, but no prompt is read in such pieces
            kept = slot.cache.rewind(max(end for end in (0, *ends) if end < kept))
        slot.ids, slot.whole, slot.taken = list(prompt[:kept]), kept, True
        return slot, [end for end in ends if end > kept]

    def read(self, slot: Slot, piece: Sequence[int]) -> None:
        """The cache of `slot` has taken a piece of its prompt."""
        if len(slot.ids) == slot.whole and len(piece) == self._block:
            slot.whole += self._block
        slot.ids += piece

    def give_back(self, slot: Slot) -> None:
        """Its text is over."""
        slot.taken, slot.used = False, next(self._clock)

    def _shared(self, slot: Slot, prompt: Sequence[int], ends: Sequence[int]) -> int:
        """Tokens in blocks of the slot with which the prompt begins, where its own pieces end there too."""
        shared = 0
        for end in ends[:-1]:
            if end > slot.whole or slot.ids[shared:end] != list(prompt[shared:end]):
                break
            shared = end
        return shared
