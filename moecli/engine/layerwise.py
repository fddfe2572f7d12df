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

    These are there until the next group is asked for. The decoders take turns, half a layer each; `after_layer` is called once all have passed one. `watch` is told of
    tokens, done and of how many.
    """
    done, total = 0, sum(len(text.ids) for text in texts)
    halves = 2 * max(len(decoder.spec.layers) for decoder in decoders)
    for group in groups(texts, together):
        size, ids = sum(len(text.ids) for text in group), [torch.tensor(text.ids) for text in group]
        passing = [
            decoder.layerwise(ids, CHUNK, observer) for decoder, observer in zip(decoders, observers, strict=True)
        ]
        states: list[Tensor] = []
        for half, yielded in enumerate(zip_longest(*passing), 1):
            states = [
                now if now is not None else before for now, before in zip(yielded, states or yielded, strict=True)
            ]
            watch(done + size * half // (halves + 1), total)  # what is made of the states is as long as half a layer
            if half % 2 == 0:
                after_layer(half // 2 - 1)
        yield group, states
        states.clear()  # whoever got them has the list: the next group's take their place
        done += size
        watch(done, total)
