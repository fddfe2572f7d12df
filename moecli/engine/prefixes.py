"""A pool of caches: a prompt that begins like an earlier text reads only what is new, and gives the same bits.

What is used again are whole blocks that were read as part of a prompt: what an answer adds was made by other kernels.
Where a token's bits depend on the tokens that are read with it, every prompt is read in pieces of one block, whatever
was cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from moecli.engine.cache import Cache
from moecli.engine.states import RecurrentCache
from moecli.kernels.blocking import BLOCK, MAX_TOKENS

if TYPE_CHECKING:
    from moecli.engine.decoder import Decoder
    from moecli.engine.session_file import SessionFile

_BLOCK = 128  # tokens


@dataclass(frozen=True, slots=True)
class Reading:
    """How prompts are read: at multiples of `block` tokens they may be cut, at those of `piece` they are.

    Prompts of at most `least` tokens share nothing: latents are attended to in another way.
    """

    block: int
    piece: int
    least: int = 0


def reading_of(decoder: Decoder, cache: Cache, resident: bool, short: bool = False) -> Reading:
    """How this decoder's prompts are read into caches like this one; `resident`: no expert comes from disk.

    `short` pieces let other texts grow in between, where no expert has to be read for them again.
    """
    if decoder.encoder is not None or decoder.rotates_by_length:  # such a prompt is read at once
        return Reading(cache.capacity, cache.capacity)
    least = decoder.absorbed_up_to
    if any(isinstance(layer, RecurrentCache) for layer in cache.layers):  # states are large: few of them are kept
        return Reading(BLOCK, BLOCK, least)
    if not decoder.reads_alike:
        size = _BLOCK if resident else BLOCK
        return Reading(size, size, least)
    piece = _BLOCK if short and resident else BLOCK
    held = min((layer.kept_of_a_pass for layer in cache.layers), default=piece)
    return Reading(_BLOCK, max(_BLOCK, min(piece, held // _BLOCK * _BLOCK)), least)


def cuts(length: int, reading: Reading) -> list[int]:
    """Where a prompt may be cut: after each block, and at its `length`.

    A rest of so few tokens that the decoder would take them for a decode step joins the block before.
    """
    if length <= reading.least:
        return [length]
    ends = [*range(reading.block, length, reading.block), length]
    if len(ends) > 1 and length - ends[-2] <= MAX_TOKENS:
        del ends[-2]
    return ends


class Slot:
    """A cache, and the ids that it holds: of these the first `whole` are blocks that any prompt may share."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.ids: list[int] = []
        self.whole = 0
        self.cuts: list[int] = []  # of the prompt that is read into it
        self.taken = False
        self.used = 0  # the higher, the later

    def clear(self) -> None:
        """Hold nothing: what it held is another text's, or was torn by a pass that did not end."""
        self.cache.rewind(0)
        self.ids.clear()
        self.whole = 0


class Slots:
    """As many texts as are generated side by side; each keeps its cache when it is over, until another needs it."""

    def __init__(self, caches: Sequence[Cache], reading: Reading, file: SessionFile | None = None) -> None:
        """`file` gets every block that is read, and is asked for those that no cache holds."""
        self._slots = [Slot(cache) for cache in caches]
        self._reading, self.file = reading, file
        self._clock = count(1)

    def take(self, prompt: Sequence[int], anew: bool = False) -> tuple[Slot, list[int]] | None:
        """A slot that holds as much of the prompt as is known, and where its pieces end; None while all are taken.

        What is to be read `anew` is not known.

        What another text still needs is copied: blocks of a slot that is taken, or that holds much more than is shared.
        """
        free = [slot for slot in self._slots if not slot.taken]
        if not free:
            return None
        ends = cuts(len(prompt), self._reading)
        source = max(self._slots, key=lambda slot: (self._shared(slot, prompt, ends), not slot.taken))
        shared = 0 if anew else self._shared(source, prompt, ends)
        slot = source
        if not shared or source.taken or 2 * shared < source.whole:
            slot = min(free, key=lambda slot: slot.used)
        copied = shared and slot is not source
        kept = slot.cache.copy(source.cache, shared) if copied else slot.cache.rewind(shared)
        while kept not in (0, *ends):  # a state was kept at this length, but no prompt is read in such pieces
            kept = slot.cache.rewind(max(end for end in (0, *ends) if end < kept))
        if self.file is not None and not anew:
            kept = self.file.restore(slot.cache, prompt, ends[-2] if len(ends) > 1 else 0)
        slot.ids, slot.whole, slot.cuts, slot.taken = list(prompt[:kept]), kept, ends, True
        piece = self._reading.piece
        return slot, [end for end in ends if end > kept and (end % piece == 0 or end == ends[-1])]

    def read(self, slot: Slot, piece: Sequence[int]) -> None:
        """The cache of `slot` has taken a piece of its prompt."""
        slot.ids += piece
        self.note(slot)

    def note(self, slot: Slot) -> None:
        """The ids of `slot` have grown by a piece of its prompt."""
        for end in slot.cuts[:-1]:
            if slot.whole < end <= len(slot.ids):
                slot.whole = end
                if self.file is not None:
                    self.file.keep(slot.cache, slot.ids, end)

    def give_back(self, slot: Slot) -> None:
        """Its text is over."""
        slot.taken, slot.used = False, next(self._clock)

    def _shared(self, slot: Slot, prompt: Sequence[int], ends: Sequence[int]) -> int:
        """Tokens in blocks of the slot with which the prompt begins, where it may be cut."""
        shared = 0
        for end in ends[:-1]:
            if end > slot.whole or slot.ids[shared:end] != list(prompt[shared:end]):
                break
            shared = end
        return shared
