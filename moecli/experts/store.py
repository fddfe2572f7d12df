"""What may be asked of an expert store, and the weighted sum of what it hands over: alike for every store."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Protocol

import torch
from torch import Tensor

from moecli.kernels.linear import Expert, expert_outputs
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

    def __call__(self, x: Tensor, activation: Activation) -> Tensor:
        """x [T, D] -> [T, D]."""
        ...


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
        """Experts of a layer, in groups as they come to hand. `counts`: how many of the tokens take each."""
        ...

    def addresses(self, layer: int) -> Tensor | None:
        """Where gate, up and down of every expert of a layer lie, int64 [E, 3]; None if some may move."""
        ...


def moe_forward(
    store: ExpertStore, layer: int, activation: Activation, x: Tensor, topk_ids: Tensor, topk_weights: Tensor
) -> Tensor:
    """The weighted sum of the selected experts. x [T, D], topk_ids and topk_weights [T, A]; returns [T, D].

    The sum is in rank order, whatever the order of arrival, so that placement never changes a bit.
    """
    if len(x) == 1:
        outputs = torch.empty(topk_ids.shape[1], x.shape[1], device=x.device)
        each_output(store, layer, activation, x, topk_ids, outputs)
        return (topk_weights.float() @ outputs).to(x.dtype)
    return _many(store, layer, activation, x, topk_ids.cpu(), topk_weights)


def each_output(
    store: ExpertStore, layer: int, activation: Activation, x: Tensor, topk_ids: Tensor, outputs: Tensor
) -> None:
    """What each expert that one token selects, topk_ids [1, A], makes of its x [1, D], into float32 [A, D].

    Each group is computed where its weights are, by x or a copy of it on the host.
    """
    ranks = {expert: rank for rank, expert in enumerate(topk_ids.cpu()[0].tolist())}
    host = x.cpu()
    with closing(store.iter_ready(layer, dict.fromkeys(ranks, 1), 1)) as groups:
        for group in groups:
            rows = x if _device(group) == x.device else host
            for (expert, _), output in zip(group, compute(rows, group, activation), strict=True):
                outputs[ranks[expert]] = output[0]


def _many(
    store: ExpertStore, layer: int, activation: Activation, x: Tensor, topk_ids: Tensor, topk_weights: Tensor
) -> Tensor:
    tokens, active = topk_ids.shape
    counts = topk_ids.flatten().bincount().tolist()
    order = topk_ids.flatten().argsort(stable=True)  # assignments, those of one expert side by side
    ends = list(accumulate(counts))
    sorted_x = x[(order // active).to(x.device)]  # [T * A, D]
    rows = {x.device: sorted_x, topk_ids.device: sorted_x.to(topk_ids.device)}
    parts = torch.empty_like(sorted_x)
    asked = {expert: count for expert, count in enumerate(counts) if count}
    with closing(store.iter_ready(layer, asked, tokens)) as groups:
        for each in chain.from_iterable(groups):
            mine = slice(ends[each[0]] - counts[each[0]], ends[each[0]])
            parts[mine] = compute(rows[_device([each])][mine], [each], activation)[0]
    ranked = parts[order.argsort().to(x.device)].view(tokens, active, -1)
    total = torch.zeros(tokens, x.shape[1], dtype=torch.float32, device=x.device)
    for rank in range(active):
        total.addcmul_(ranked[:, rank], topk_weights[:, rank, None])
    return total.to(x.dtype)


def _device(group: Group) -> torch.device:
    """Where a group's weights are."""
    expert = group[0][1]
    return expert[1].device if isinstance(expert, tuple) else expert.device


def compute(x: Tensor, group: Group, activation: Activation) -> Tensor:
    """[n, T, D]: what each expert of the group makes of x [T, D], which is where they are."""
    if whole := [expert for _, expert in group if isinstance(expert, tuple)]:
        return expert_outputs(x, whole, activation)
    return torch.stack([expert(x, activation) for _, expert in group if not isinstance(expert, tuple)])
