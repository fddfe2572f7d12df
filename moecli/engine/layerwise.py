"""Texts through one model or several side by side, a layer at a time: each expert is read once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, zip_longest
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from moecli.engine.block import RoutingObserver
from moecli.engine.decoder import Decoder
from moecli.kernels.blocking import CHUNK
from moecli.store.progress import Progress


class Text(Protocol):
    """What has token ids."""

    @property
    def ids(self) -> Sequence[int]: ...


_T = TypeVar("_T", bound=Text)


def groups(texts: Sequence[_T], together: int) -> Iterator[Sequence[_T]]:
    """In their order, as many at once as have at most `together` tokens; one at least."""
    begins, size = [0], 0
    for place, text in enumerate(texts):
        if size and size + len(text.ids) > together:
            begins.append(place)
            size = 0
        size += len(text.ids)
    return (texts[begin:end] for begin, end in pairwise([*begins, len(texts)]))


def read_side_by_side(
    decoders: Sequence[Decoder],
    texts: Sequence[_T],
    together: int,
    watch: Progress,
    observers: Sequence[RoutingObserver | None],
    after_layer: Callable[[int], None] = lambda layer: None,
) -> Iterator[tuple[Sequence[_T], list[Tensor]]]:
    """Yield groups of texts of at most `together` tokens, and of each decoder their states after its last layer [T, D].

    These are there until the next group is asked for. The decoders take turns, half a layer each; `after_layer` is
    called once all have passed one. `watch` is told of tokens, done and of how many.
    """
    done, total = 0, sum(len(text.ids) for text in texts)
    halves = 2 * max(len(decoder.spec.layers) for decoder in decoders)
    for group in groups(texts, together):
        size, ids = sum(len(text.ids) for text in group), [torch.tensor(text.ids) for text in group]
        passing = [
            decoder.layerwise(ids, CHUNK, observer) for decoder, observer in zip(decoders, observers, strict=True)
        ]

        def passed(half: int, done: int = done, size: int = size) -> None:
            watch(done + size * half // (halves + 1), total)  # what is made of the states is as long as half a layer
            if half % 2 == 0:
                after_layer(half // 2 - 1)

        states = _last(passing, passed)
        yield group, states
        states.clear()  # the list is that of whoever got it: the next group's states take their place
        done += size
        watch(done, total)


def _last(passing: Sequence[Iterator[Tensor]], passed: Callable[[int], None]) -> list[Tensor]:
    """What each yields last; they take turns, and `passed` is told after each of these."""
    last: dict[int, Tensor] = {}
    for turn, yielded in enumerate(zip_longest(*passing), 1):
        last |= {index: states for index, states in enumerate(yielded) if states is not None}
        passed(turn)
    return [last[index] for index in range(len(passing))]
