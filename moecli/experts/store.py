"""What the decoder may ask of an expert store, and the weighted sum that every store computes alike."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from moecli.kernels.products import Expert, expert_outputs
from moecli.spec import Activation


@dataclass(slots=True)
class Statistics:
    """What the store has done: one hit or miss per expert, layer and pass."""

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    wait_s: float = 0.0  # for bytes on their way while there was nothing to compute
    budget_bytes: int = 0


class ExpertStore(Protocol):
    """Experts addressed by layer; where they live is the store's own affair."""

    statistics: Statistics

    def mixture(self, layer: int, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of the chosen experts. x [T, D], chosen and weights [T, A]; returns [T, D]."""
        ...


class Streamed(Protocol):
    """A large expert, computed by runs of its rows, which may still be arriving."""

    def __call__(self, x: Tensor, activation: Activation) -> Tensor:
        """x [T, D] -> [T, D]."""
        ...


Group = Sequence[tuple[int, Expert | Streamed]]  # by number: experts at hand together, all of one kind
Arrivals = Callable[[dict[int, int]], Generator[Group, None, None]]


def mix(x: Tensor, chosen: Tensor, weights: Tensor, activation: Activation, arrivals: Arrivals) -> Tensor:
    """The weighted sum of the chosen experts, each computed when `arrivals` brings it.

    `arrivals` is told how many tokens take each expert, and yields each once, in groups. The sum is in rank order,
    whatever the order of arrival, so that placement never changes a bit.
    """
    return (_one if len(x) == 1 else _many)(x, chosen, weights, activation, arrivals)


def _one(x: Tensor, chosen: Tensor, weights: Tensor, activation: Activation, arrivals: Arrivals) -> Tensor:
    ranks = {expert: rank for rank, expert in enumerate(chosen[0].tolist())}
    parts = x.new_empty(len(ranks), x.shape[1], dtype=torch.float32)  # [A, D]
    with closing(arrivals(dict.fromkeys(ranks, 1))) as groups:
        for group in groups:
            parts[[ranks[expert] for expert, _ in group]] = _compute(x, group, activation)[:, 0].float()
    return (weights.float() @ parts).to(x.dtype)


def _many(x: Tensor, chosen: Tensor, weights: Tensor, activation: Activation, arrivals: Arrivals) -> Tensor:
    tokens, active = chosen.shape
    counts = chosen.flatten().bincount()
    order = chosen.flatten().argsort(stable=True).split(counts.tolist())  # assignments of each expert
    parts = x.new_empty(tokens * active, x.shape[1])  # [T * A, D]
    with closing(arrivals({expert: len(mine) for expert, mine in enumerate(order) if len(mine)})) as groups:
        for each in chain.from_iterable(groups):
            mine = order[each[0]]
            parts[mine] = _compute(x[mine // active], [each], activation)[0].to(x.dtype)
    ranked = parts.view(tokens, active, -1)
    total = torch.zeros(tokens, x.shape[1], dtype=torch.float32, device=x.device)
    for rank in range(active):
        total.addcmul_(ranked[:, rank], weights[:, rank, None])
    return total.to(x.dtype)


def _compute(x: Tensor, group: Group, activation: Activation) -> Tensor:
    """[n, T, D]: what each expert of the group makes of x [T, D]."""
    if whole := [expert for _, expert in group if isinstance(expert, tuple)]:
        return expert_outputs(x, whole, activation)
    return torch.stack([expert(x, activation) for _, expert in group if not isinstance(expert, tuple)])
