"""Experts in place in the memory-mapped checkpoint: the store for models that fit in RAM."""

from __future__ import annotations

import torch
from torch import Tensor

from moecli.experts.store import mix
from moecli.formats.plain import stored_slice
from moecli.kernels.plain import Matrices
from moecli.tensors import EXPERT_MATRICES
from moecli.weights import Weights


class MappedExperts:
    """The checkpoint's own bytes; converted once, on first use, when another precision is asked for."""

    def __init__(self, weights: Weights, dtype: torch.dtype) -> None:
        self._weights = weights
        self._dtype = dtype
        self._activations = {layer: mixture.expert.activation for layer, mixture in weights.spec.mixtures}
        self._matrices: dict[tuple[int, int], Matrices] = {}

    def mixture(self, layer: int, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """See ExpertStore."""
        return mix(x, chosen, weights, self._activations[layer], lambda expert: self._expert(layer, expert))

    def _expert(self, layer: int, expert: int) -> Matrices:
        found = self._matrices.get((layer, expert))
        if found is None:
            gate, up, down = (self._matrix(layer, expert, matrix) for matrix in EXPERT_MATRICES)
            found = self._matrices[layer, expert] = gate, up, down
        return found

    def _matrix(self, layer: int, expert: int, matrix: str) -> Tensor:
        part = self._weights.expert(layer, expert, matrix)
        return stored_slice(self._weights.checkpoint, part).to(self._dtype)
