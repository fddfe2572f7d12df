"""Dense weights for the forward pass: read once into memory, stacked and converted where the spec says so."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

from moecli import tensors
from moecli.formats.plain import read_into
from moecli.weights import Weights

LayerWeights = dict[str, Tensor]  # by role

_FLOAT32 = frozenset({"router", "router_bias"})  # the router's arithmetic never loses precision


class DenseWeights:
    """Every tensor but the routed experts, by role: `outside` the blocks and per layer."""

    def __init__(self, weights: Weights, dtype: torch.dtype) -> None:
        by_layer: dict[int | None, LayerWeights] = defaultdict(dict)
        for tensor in tensors.dense_tensors(weights.spec):
            target = torch.float32 if tensor.role in _FLOAT32 else dtype
            by_layer[tensor.layer][tensor.role] = _load(weights, tensor, target)
        self.outside = by_layer[None]
        self.layers = [by_layer[index] for index in range(len(weights.spec.layers))]


def _load(weights: Weights, tensor: tensors.Tensor, dtype: torch.dtype) -> Tensor:
    loaded = torch.empty(tensor.shape, dtype=dtype)
    start = 0
    for stored in weights.dense(tensor):
        rows = math.prod(stored.shape) // math.prod(tensor.shape[1:])
        read_into(loaded[start : start + rows], weights.checkpoint, stored)
        start += rows
    return loaded
