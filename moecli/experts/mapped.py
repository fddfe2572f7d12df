"""Experts in place in the memory-mapped checkpoint: the store for models that fit in RAM."""

from __future__ import annotations

from torch import Tensor

from moecli.experts.store import Statistics, mix
from moecli.formats.plain import read_slice, stored_slice, torch_dtype
from moecli.kernels.plain import Matrices
from moecli.tensors import EXPERT_MATRICES
from moecli.weights import FLOATS, Weights


class MappedExperts:
    """The checkpoint's own bytes; converted once, on first use, when another precision is asked for."""

    def __init__(self, weights: Weights, dtype: str, budget: int = 0) -> None:
        self._weights = weights
        self._dtype = dtype
        weights.checkpoint.populate(t for t in weights.expert_tensors() if FLOATS[t.dtype] == dtype)
        self.statistics = Statistics(budget_bytes=budget)
        self._activations = {layer: mixture.expert.activation for layer, mixture in weights.spec.mixtures}
        self._matrices: dict[tuple[int, int], Matrices] = {}

    def mixture(self, layer: int, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """See ExpertStore."""
        self.statistics.hits += int(chosen.unique().numel()) if len(x) > 1 else chosen.shape[-1]
        return mix(x, chosen, weights, self._activations[layer], lambda expert: self._expert(layer, expert))

    def _expert(self, layer: int, expert: int) -> Matrices:
        found = self._matrices.get((layer, expert))
        if found is None:
            gate, up, down = (self._matrix(layer, expert, matrix) for matrix in EXPERT_MATRICES)
            found = self._matrices[layer, expert] = gate, up, down
        return found

    def _matrix(self, layer: int, expert: int, matrix: str) -> Tensor:
        part, checkpoint = self._weights.expert(layer, expert, matrix), self._weights.checkpoint
        in_place = FLOATS[part.stored.dtype] == self._dtype
        return stored_slice(checkpoint, part) if in_place else read_slice(checkpoint, part, torch_dtype(self._dtype))
