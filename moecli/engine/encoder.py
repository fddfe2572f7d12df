"""The encoder of an encoder-decoder model: a text whose tokens all see each other, for the decoder to attend to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from moecli.engine.block import Block, RoutingObserver
from moecli.engine.cache import LayerCache
from moecli.engine.layers import normalise
from moecli.engine.weights import DenseWeights
from moecli.model.spec import Mixture, ModelSpec
from moecli.store.progress import Progress, silent


class Encoder:
    """The blocks before those of the decoder. A text passes at once, since each token needs all others."""

    def __init__(self, spec: ModelSpec, dense: DenseWeights, blocks: Sequence[Block]) -> None:
        self._spec, self._dense, self._blocks = spec, dense, blocks
        self.dropped: float | None = None  # share of the last text's choices that full experts dropped

    def forward(self, ids: Tensor, observer: RoutingObserver | None = None, watch: Progress = silent) -> Tensor:
        """The normed states [T, D] of a text, ids [T]; `watch` is told of tokens, of how many."""
        if observer is not None:
            observer.tokens(ids)
        x = self._dense.embed(ids)
        # One layer after another: each has its keys and values in the place of the last one's.
        cache = LayerCache(self._spec.encoder[0].attention, len(ids), x.dtype, x.device)
        for number, block in enumerate(self._blocks):
            watch(len(ids) * number // len(self._blocks), len(ids))
            cache.clear()
            x = block.attend(x, cache, len(ids))
            block.feed_forward(x, observer)
        watch(len(ids), len(ids))
        mixtures = [each.ffn for each in self._spec.encoder if isinstance(each.ffn, Mixture)]
        if limited := sum(mixture.router.capacity is not None for mixture in mixtures):
            self.dropped = sum(block.dropped for block in self._blocks) / (limited * len(ids))
        return normalise(x, self._dense.outside["encoder_final_norm"], self._spec.norm, self._spec.norm_eps)
