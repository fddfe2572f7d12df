"""Two models on the same text, a layer of each in turn: what they foretell, how far apart, and who routes otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moecli.engine.block import RoutingObserver
from moecli.engine.decoder import Decoder
from moecli.engine.estimates import Estimate, mean, runs
from moecli.engine.layerwise import read_side_by_side
from moecli.engine.likelihood import Likelihood, likelihood, log_softmax, scored_rows
from moecli.engine.loaded import OpenedModel
from moecli.engine.router import Routing
from moecli.engine.windows import Window
from moecli.errors import MoecliError
from moecli.model.spec import ModelSpec
from moecli.planning.memory import scored_at_once
from moecli.routing.agreement import Agreement, LayerTally
from moecli.store.progress import Progress


@dataclass(frozen=True, slots=True)
class Divergence:
    """Kullback-Leibler divergence of the second model from the first, sum of p ln(p / q) in nats, of scored tokens."""

    mean: Estimate
    median: float
    percentile_99: float
    largest: float


@dataclass(frozen=True, slots=True)
class TextComparison:
    """Two models on the same windows; the first is what the second is held against."""

    first: Likelihood
    second: Likelihood
    difference: Estimate  # mean loss of the second less that of the first: ln of the ratio of perplexities
    divergence: Divergence
    same_top: Estimate  # share of scored tokens in whose place both think the same token likeliest
    routing: Agreement | None  # of every token read; None for models whose routers differ in shape, or have none


_SAMPLE = "The sea, the sea. Größe 42: 你好 def f(x):\n    return x"


def check_comparable(one: OpenedModel, other: OpenedModel) -> None:
    """MoecliError for models that number tokens differently: they are asked for a text of many kinds of letters."""
    if one.tokenizer.encode(_SAMPLE) != other.tokenizer.encode(_SAMPLE):
        raise MoecliError(
            f"{one.name} and {other.name} have different tokenizers: their probabilities are not of the same tokens",
            "moecli perplexity shows each by itself",
        )
    if one.spec.vocab_size != other.spec.vocab_size:
        raise MoecliError(
            f"{one.name} has {one.spec.vocab_size:,} tokens and {other.name} {other.spec.vocab_size:,}",
            "compare two formats of a model, or two models of one vocabulary",
        )


def compare_text(
    decoders: Sequence[Decoder], windows: Sequence[Window], together: int, watch: Progress
) -> TextComparison:
    """Read the windows with both, at most `together` tokens at once as planned; `watch` is told of tokens."""
    routers = _Routers(decoders[0].spec, decoders[1].spec)
    scores, done = torch.empty(4, sum(window.scored for window in windows)), 0
    for group, states in read_side_by_side(decoders, windows, together, watch, routers.observers, routers.after_layer):
        done += _score(decoders, group, states, scores[:, done:])
    first, second, divergence, same = scores.numpy()  # [4, N]
    of_run = runs([window.scored for window in windows])
    return TextComparison(
        likelihood(windows, first),
        likelihood(windows, second),
        mean(second.astype(np.float64) - first, of_run),
        _divergence(divergence, of_run),
        mean(same, of_run),
        routers.agreement(sum(len(window.ids) for window in windows)),
    )


def _score(decoders: Sequence[Decoder], group: Sequence[Window], states: Sequence[Tensor], scores: Tensor) -> int:
    """Put what is found of a group's scored tokens at the begin of `scores` [4, N]; returns their number."""
    done = 0
    for rows, targets in scored_rows(group, states, scored_at_once(decoders[0].spec)):
        scores[:, done : done + len(targets)] = _scores(decoders, rows, targets)
        done += len(targets)
    return done


def _scores(decoders: Sequence[Decoder], states: Sequence[Tensor], targets: Tensor) -> Tensor:
    """Of scored tokens [n] after states [n, D] of each model: both losses, the divergence, same top, float32 [4, n]."""
    one, other = (log_softmax(*each).cpu() for each in zip(decoders, states, strict=True))
    losses = [-each.gather(1, targets[:, None])[:, 0] for each in (one, other)]
    same = (one.argmax(1) == other.argmax(1)).float()
    divergence = other.neg_().add_(one).mul_(one.exp_()).sum(1)
    return torch.stack((*losses, divergence.clamp_(min=0), same))  # below 0 is rounding


def _divergence(values: NDArray[np.float32], of_run: NDArray[np.int64]) -> Divergence:
    median, percentile_99 = np.quantile(values, (0.5, 0.99))
    return Divergence(mean(values, of_run), float(median), float(percentile_99), float(values.max()))


class _Routers:
    """Looks at both routers of each layer while both have passed it, and counts; nothing of a token is kept."""

    def __init__(self, one: ModelSpec, other: ModelSpec) -> None:
        shapes = [
            {layer: (mixture.router.experts, mixture.router.top_k) for layer, mixture in spec.mixtures}
            for spec in (one, other)
        ]
        self._tallies = {
            layer: LayerTally(layer, *shape) for layer, shape in shapes[0].items() if shapes[0] == shapes[1]
        }
        self._seen = [_Choices(), _Choices()] if self._tallies else []
        self.observers: Sequence[RoutingObserver | None] = self._seen or [None, None]

    def after_layer(self, layer: int) -> None:
        if layer in self._tallies:
            self._tallies[layer].add(*(each.topk_ids for each in self._seen))

    def agreement(self, tokens: int) -> Agreement | None:
        if not self._tallies:
            return None
        return Agreement(tokens, tuple(tally.agreement() for tally in self._tallies.values()))


class _Choices:
    """The experts that all tokens took at the layer passed last."""

    generated = False
    encoder: RoutingObserver | None = None

    def __init__(self) -> None:
        self.topk_ids = np.zeros((0, 0), np.uint16)

    def tokens(self, ids: Tensor) -> None:
        """All texts were known at the start."""

    def foresee(self, layer: int, topk_ids: Tensor) -> None:
        """What would have been is not compared."""

    def record(self, layer: int, routing: Routing) -> None:
        self.topk_ids = routing.topk_ids.cpu().numpy().astype(np.uint16)
