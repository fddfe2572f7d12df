"""Gated feed-forward blocks on unquantised weights, by torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.spec import Activation

Matrices = tuple[Tensor, Tensor, Tensor]  # gate [I, D], up [I, D], down [D, I]


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.SILU: F.silu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: _gelu_tanh,
    Activation.RELU: torch.relu,
}


def feed_forward(x: Tensor, matrices: Matrices, activation: Activation) -> Tensor:
    """down(activation(gate x) * up x). x [T, D]; returns [T, D]."""
    gate, up, down = matrices
    hidden = ACTIVATIONS[activation](F.linear(x, gate)).mul_(F.linear(x, up))
    return F.linear(hidden, down)


def feed_forward_fused(x: Tensor, gate_up: Tensor, down: Tensor, activation: Activation) -> Tensor:
    """The same with gate and up stacked by rows, [2I, D]."""
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(ACTIVATIONS[activation](gate) * up, down)
