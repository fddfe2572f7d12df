"""What the decoder may ask of an expert store, and the weighted sum that every store computes alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from moecli.kernels.plain import Matrices, feed_forward
from moecli.spec import Activation

MatricesOf = Callable[[int], Matrices]  # by expert


@dataclass(slots=True)
class Statistics:
    """What the store has done: one hit or miss per expert, layer and pass."""

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    budget_bytes: int = 0


class ExpertStore(Protocol):
    """Experts addressed by layer; where they live is the store's own affair."""

    statistics: Statistics

    def mixture(self, layer: int, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of the chosen experts. x [T, D], chosen and weights [T, A]; returns [T, D]."""
        ...


def mix(x: Tensor, chosen: Tensor, weights: Tensor, activation: Activation, matrices: MatricesOf) -> Tensor:
    """Sum in rank order, whatever the order of computation, so that placement never changes a bit."""
    if len(x) == 1:
        total = torch.zeros(1, x.shape[1], dtype=torch.float32, device=x.device)
        for expert, weight in zip(chosen[0].tolist(), weights[0].tolist(), strict=True):
            total.add_(feed_forward(x, matrices(expert), activation), alpha=weight)
        return total.to(x.dtype)
    tokens, active = chosen.shape
    order = chosen.flatten().argsort(stable=True)  # assignments, grouped by expert
    parts = x.new_empty(tokens * active, x.shape[1])  # [T * A, D]
    start = 0
    for expert, count in enumerate(chosen.flatten().bincount().tolist()):
        if count:
            mine = order[start : start + count]
            fed = x[_padded(mine) // active]
            parts[mine] = feed_forward(fed, matrices(expert), activation)[:count]
            start += count
    ranked = parts.view(tokens, active, -1)
    total = torch.zeros(tokens, x.shape[1], dtype=torch.float32, device=x.device)
    for rank in range(active):
        total.addcmul_(ranked[:, rank], weights[:, rank, None])
    return total.to(x.dtype)


def _padded(rows: Tensor) -> Tensor:
    """Repeat the last row up to one of few sizes: a matrix product compiles itself anew for each height it meets."""
    count = len(rows)
    size = 1 << (count - 1).bit_length() if count <= 16 else -(-count // 16) * 16
    return rows if size == count else torch.cat((rows, rows[-1:].expand(size - count)))
