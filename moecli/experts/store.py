"""What may be asked of an expert store, and the weighted sum of what it hands over: alike for every store."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import repeat
from typing import Protocol

import torch
from torch import Tensor

from moecli.experts.arena import CPU
from moecli.kernels.blocking import CHUNK, GROUPED
from moecli.kernels.linear import (
    Biases,
    Expert,
    ExpertBiases,
    add_weighted,
    expert_outputs,
    grouped_outputs,
    takes_groups,
)
from moecli.model.spec import Activation


@dataclass(slots=True)
class Statistics:
    """What the store has done: one hit or miss per expert, layer and pass."""

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    read_s: float = 0.0  # while reads were under way
    wait_s: float = 0.0  # of it, with nothing to compute meanwhile
    budget_bytes: int = 0


class Streamed(Protocol):
    """A large expert, computed by runs of its rows, which may still be arriving."""

    @property
    def device(self) -> torch.device: ...

    def __call__(self, x: Tensor, activation: Activation, biases: Biases = ()) -> Tensor:
        """x [T, D] -> [T, D]."""
        ...


_Whole = tuple[int, Expert]
Group = Sequence[tuple[int, Expert | Streamed]]  # by number: experts at hand together, all of one kind


class ExpertStore(Protocol):
    """Experts addressed by layer; where they live is the store's own affair."""

    @property
    def statistics(self) -> Statistics:
        """What the store has done so far."""
        ...

    @property
    def dtype(self) -> str:
        """The format of the experts' weights, such as "q4"."""
        ...

    def iter_ready(self, layer: int, counts: dict[int, int], tokens: int) -> Generator[Group, None, None]:
        """Experts of a layer, in groups as they come to hand. `counts`: how many of the tokens take each.

        Those in RAM or from disk come in the order of their numbers where many tokens are there to be computed
        meanwhile: so little has to wait for its turn.
        """
        ...

    def addresses(self, layer: int) -> Tensor | None:
        """Where gate, up and down of every expert of a layer lie, int64 [E, 3]; None if some may move."""
        ...

    def records(self, layer: int) -> Tensor | None:
        """Where on a device the record of every expert of a layer begins, int64 [E] there; None if some may move."""
        ...


def moe_forward(
    store: ExpertStore, layer: int, activation: Activation, x: Tensor, topk_ids: Tensor, topk_weights: Tensor,
    biases: ExpertBiases | None = None,
) -> Tensor:  # fmt: skip
    """The weighted sum of the selected experts. x [T, D], topk_ids and topk_weights [T, A]; [T, D] in float32.

    The sum is in the order of the experts' numbers, whatever the order of arrival, so that placement never changes a
    bit; one that comes before its turn waits. An expert in memory sees at most CHUNK tokens at once, a group
    of experts on a GPU at most GROUPED or those of one.
    """
    topk_ids, sums = topk_ids.cpu(), torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    if len(x) == 1:  # all that are at hand in one call
        made = torch.empty(topk_ids.shape[1], x.shape[1], device=x.device)
        each_output(store, layer, activation, x, topk_ids, made, biases)
        weighted = made * topk_weights[0].float()[:, None]
        for rank in topk_ids[0].argsort().tolist():
            sums += weighted[rank]
        return sums
    taken = _Taken(topk_ids, topk_weights)
    rows = {CPU: x.cpu(), x.device: x}
    turns = deque(taken.counts)
    waiting: dict[int, Iterable[Tensor]] = {}

    def outputs(group: Group) -> Iterator[tuple[int, Iterable[Tensor]]]:
        """What each expert of a group makes of its tokens, in parts."""
        device = _device(group)
        whole = [(number, expert) for number, expert in group if isinstance(expert, tuple)]
        if whole and biases is None and takes_groups(whole[0][1], activation):
            for some in taken.cut(whole, GROUPED):
                tokens = [taken.tokens[number] for number, _ in some]
                made = grouped_outputs(rows[device], tokens, [expert for _, expert in some], activation)
                yield from ((number, [part.to(x.device)]) for (number, _), part in zip(some, made, strict=True))
            return
        for number, expert in group:
            yield number, one_by_one((number, expert), CHUNK if isinstance(expert, tuple) else len(x))

    def one_by_one(each: tuple[int, Expert | Streamed], at_once: int) -> Iterator[Tensor]:
        device = _device([each])
        for tokens in taken.tokens[each[0]].split(at_once):
            yield compute(rows[device][tokens.to(device)], [each], activation, biases)[0].to(x.device)

    def add_those_in_turn() -> None:
        while turns and turns[0] in waiting:
            first = turns.popleft()
            taken.add(first, waiting.pop(first), sums)

    with closing(store.iter_ready(layer, taken.counts, len(x))) as groups:
        for group in groups:
            in_turn = biases is None and all(number == turn for (number, _), turn in zip(group, turns, strict=False))
            if in_turn and taken.add_all(group, x, activation, sums):
                for _ in group:
                    turns.popleft()
                add_those_in_turn()
                continue
            for number, parts in outputs(group):
                waiting[number] = parts if number == turns[0] else list(parts)
                add_those_in_turn()
    return sums


class _Taken:
    """Which tokens take each expert, and by what weight, from topk_ids [T, A] on the host and topk_weights [T, A]."""

    def __init__(self, topk_ids: Tensor, topk_weights: Tensor) -> None:
        chosen = topk_ids.flatten()
        counts = chosen.bincount().tolist()
        order = chosen.argsort(stable=True)  # those of one expert side by side
        self.counts = {expert: count for expert, count in enumerate(counts) if count}  # in the order of the sum
        self.tokens = dict(enumerate((order // topk_ids.shape[1]).split(counts)))
        self._weights = topk_weights.float().flatten()[order.to(topk_weights.device)].split(counts)

    def cut(self, group: Sequence[_Whole], most: int) -> Iterator[list[_Whole]]:
        """Experts of a group, as many at once as `most` tokens take; one at least."""
        some, count = list[_Whole](), 0
        for each in group:
            if some and count + self.counts[each[0]] > most:
                yield some
                some, count = [], 0
            some.append(each)
            count += self.counts[each[0]]
        yield some

    def add_all(self, group: Group, x: Tensor, activation: Activation, sums: Tensor) -> bool:
        """Add what the experts of a group make of their tokens of x [T, D], by one native call if that can be."""
        whole = [expert for _, expert in group if isinstance(expert, tuple)]
        if not whole or len(whole) < len(group) or not x.is_cpu:
            return False
        numbers = [number for number, _ in group]
        rows, weights = (torch.cat([each[number] for number in numbers]) for each in (self.tokens, self._weights))
        return add_weighted(sums, x, whole, activation, [self.counts[number] for number in numbers], rows, weights)

    def add(self, expert: int, outputs: Iterable[Tensor], sums: Tensor) -> None:
        """Add what an expert made of its tokens, in parts [n, D], to the sums [T, D] in float32."""
        first = 0
        for part in outputs:
            mine = slice(first, first := first + len(part))
            weighted = part.float().mul_(self._weights[expert][mine, None])  # nobody else has it
            sums.index_add_(0, self.tokens[expert][mine].to(sums.device), weighted)


def each_output(
    store: ExpertStore, layer: int, activation: Activation, x: Tensor, topk_ids: Tensor, outputs: Tensor,
    biases: ExpertBiases | None = None,
) -> None:  # fmt: skip
    """What each expert that a token selects, topk_ids [T, A] on the host, makes of it, x [T, D]: float32 [T * A, D].

    Each is asked for once, and computed where its weights are, by x or a copy of it on the host.
    """
    places: dict[int, list[int]] = {}
    for place, expert in enumerate(topk_ids.flatten().tolist()):
        places.setdefault(expert, []).append(place)
    host = x.cpu()
    with closing(store.iter_ready(layer, {expert: len(its) for expert, its in places.items()}, len(x))) as groups:
        for group in groups:
            rows = x if _device(group) == x.device else host
            if len(x) == 1:  # all in one call
                for (expert, _), output in zip(group, compute(rows, group, activation, biases), strict=True):
                    outputs[places[expert][0]] = output[0]
                continue
            for each in group:
                its = torch.tensor(places[each[0]])
                tokens = (its // topk_ids.shape[1]).to(rows.device)
                made = compute(rows[tokens], [each], activation, biases)[0]
                outputs[its.to(outputs.device)] = made.to(outputs.device)


def _device(group: Group) -> torch.device:
    """Where a group's weights are."""
    expert = group[0][1]
    return expert[1].device if isinstance(expert, tuple) else expert.device


def compute(x: Tensor, group: Group, activation: Activation, biases: ExpertBiases | None = None) -> Tensor:
    """[n, T, D]: what each expert of the group makes of x [T, D], which is where they are."""
    added = [] if biases is None else biases.of((number for number, _ in group), x.device)
    if whole := [expert for _, expert in group if isinstance(expert, tuple)]:
        return expert_outputs(x, whole, activation, added)
    pieces = zip((expert for _, expert in group if not isinstance(expert, tuple)), added or repeat(()), strict=False)
    return torch.stack([expert(x, activation, its) for expert, its in pieces])
