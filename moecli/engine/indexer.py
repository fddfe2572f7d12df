"""The lightning indexer: which of the earlier tokens a query attends to (DeepSeek-V3.2, arXiv 2512.02556)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.engine.layers import RotaryEmbedding
from moecli.engine.weights import LayerWeights
from moecli.kernels.linear import linear
from moecli.model.spec import MLA, Indexer, Layer

_EPS = 1e-6  # of the norm on keys, in every release


class Choices:
    """What the indexer of one layer chose for tokens that pass the layers together, until later layers have read it."""

    def __init__(self) -> None:
        self.readers = 0  # layers that share it
        self._kept: dict[tuple[int, int], tuple[int, list[Tensor]]] = {}

    def keep(self, text: int, start: int, rows: Iterable[Tensor]) -> Iterable[Tensor]:
        """Of tokens of a text, the first at position `start`, the rows that each attends to; the same again."""
        if not self.readers:
            return rows
        found = list(rows)
        self._kept[text, start] = self.readers, found
        return found

    def take(self, text: int, start: int) -> list[Tensor]:
        """What was kept there; the last reader leaves nothing."""
        left, rows = self._kept.pop((text, start))
        if left > 1:
            self._kept[text, start] = left - 1, rows
        return rows

    def clear(self) -> None:
        """Forget what a pass that was broken off has left."""
        self._kept.clear()


def choices_of(layers: Sequence[Layer]) -> list[Choices]:
    """Where each layer puts what its indexer chooses, or takes what another one's did."""
    found, own = list[Choices](), Choices()
    for layer in layers:
        indexer = layer.attention.indexer if isinstance(layer.attention, MLA) else None
        if indexer is None or not indexer.shared:
            own = Choices()
        else:
            own.readers += 1
        found.append(own)
    return found


class LightningIndexer:
    """Scores every token for a query, by a few small heads that share one key per token.

    The vendor turns queries and keys by a Hadamard matrix and rounds them to fp8 before they meet. The first changes no
    product and the second only its precision, so both are left out, as in transformers.
    """

    def __init__(self, spec: Indexer, weights: LayerWeights, rotary: RotaryEmbedding) -> None:
        self._spec, self._weights, self._rotary = spec, weights, rotary
        self.shared = spec.shared

    def keys(self, x: Tensor, start: int) -> Tensor:
        """What is kept of x [T, D], the first of it at position `start`: [T, 1, d]."""
        w = self._weights
        k = linear(x, w.matrix("index_k"))
        k = F.layer_norm(k, k.shape[-1:], w["index_k_norm"], w["index_k_norm_bias"], _EPS)
        return self._rotate(k[:, None], start)

    def seen_whole(self, start: int, tokens: int) -> int:
        """How many of these tokens, the first at position `start`, attend to all before them: they are the first."""
        return min(max(self._spec.top_k - start, 0), tokens)

    def choose(self, x: Tensor, low: Tensor, keys: Tensor, start: int) -> Iterator[Tensor]:
        """For each token of x [T, D], the first at position `start`, the rows [top_k] that it attends to, in order.

        `low` is the queries' latent [T, rank], `keys` [rows, d] what is kept of all up to the last. Each token meets
        the keys up to its own by itself, in float32: no bit depends on the tokens beside it.
        """
        spec, w = self._spec, self._weights
        q = linear(low, w.matrix("index_q")).unflatten(-1, (spec.heads, -1))
        q = self._rotate(q, start).float()  # [T, H, d]
        weights = linear(x.float(), w.matrix("index_weights"))  # [T, H]; what scales all scores alike changes no choice
        wide = keys[: start + len(x)].float()
        for place in range(len(x)):
            products = torch.mm(q[place], wide[: start + place + 1].t())  # [H, n]
            scores = weights[place] @ products.relu_()
            yield scores.topk(spec.top_k, sorted=False).indices.sort().values

    def _rotate(self, x: Tensor, start: int) -> Tensor:
        """x [T, heads, d] with its leading dimensions rotated, in the order of pairs that the rotary tables have.

        Queries and keys are ordered alike, so their products do not tell.
        """
        dims = self._rotary.rope.dims
        turning, kept = x[..., :dims], x[..., dims:]
        if self._spec.interleaved and not self._rotary.rope.interleaved:
            turning = turning.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
        elif not self._spec.interleaved and self._rotary.rope.interleaved:
            turning = turning.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        return torch.cat((self._rotary.rotate(turning, start), kept), -1)
