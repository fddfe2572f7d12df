"""Recorders: what the decoder shows of its routing, put into a trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from moecli.engine.block import RoutingObserver
from moecli.engine.finite import is_finite, not_finite
from moecli.engine.router import Routing, gate_scores
from moecli.model.spec import ModelSpec
from moecli.routing.builder import TraceBuilder
from moecli.routing.recorded import require_router
from moecli.routing.trace import RoutingTrace
from moecli.text.tokenizer import Tokenizer

_WAITING = 256  # tokens kept as the decoder left them; each alone would cost more to convert than to compute


def new_builders(name: str, spec: ModelSpec, keep_probabilities: bool = False) -> dict[str, TraceBuilder]:
    """An empty trace for each of the model's `stacks`. ConfigError if it has nothing to record."""
    require_router(name, spec)
    return {
        stack: TraceBuilder(
            {layer: mixture.router.experts for layer, mixture in spec.mixtures if layer in layers}, keep_probabilities
        )
        for stack, layers in spec.stacks.items()
    }


def new_recorder(spec: ModelSpec, builders: Mapping[str, TraceBuilder]) -> Recorder:
    """A recorder for the decoder's tokens, and within it one for those of an encoder."""
    *encoder, decoder = (Recorder(spec, builder) for builder in builders.values())
    decoder.encoder = encoder[0] if encoder else None
    return decoder


def finish(
    builders: Mapping[str, TraceBuilder], spec: ModelSpec, tokenizer: Tokenizer, name: str, dtype: str
) -> dict[str, RoutingTrace]:
    """What the builders hold as traces of this model, with the text of each token; no trace of a dense stack."""
    traces = {}
    for stack, builder in builders.items():
        if builder.layers:
            called = f"{name} ({stack})" if stack else name
            trace = builder.build(name=called, dtype=dtype, family=spec.family)
            traces[stack] = replace(trace, pieces=_pieces(tokenizer, set(trace.ids.tolist())))
    return traces


def _pieces(tokenizer: Tokenizer, ids: Iterable[int]) -> dict[int, str]:
    """The text of each id inside a text: alone, some tokenizers drop its space."""
    anchor = tokenizer.encode("a", special=False)[-1:]
    before = len(tokenizer.decode(anchor))
    return {number: tokenizer.decode([*anchor, number], skip_special=False)[before:] for number in sorted(ids)}


@dataclass(slots=True)
class _Pass:
    """One chunk on its way through the layers."""

    ids: list[int]
    generated: bool
    layers: dict[int, Routing] = field(default_factory=dict)
    foreseen: dict[int, Tensor] = field(default_factory=dict)


class Recorder:
    """Fills a trace while one text after another is read or generated. A pass that was interrupted is left out."""

    def __init__(self, spec: ModelSpec, builder: TraceBuilder) -> None:
        self.generated = False
        self.encoder: Recorder | None = None
        self._builder = builder
        self._routers = {layer: mixture.router for layer, mixture in spec.mixtures if layer in builder.layers}
        self._passes: list[_Pass] = []
        self._waiting = 0
        self.recorded = 0  # tokens handed over

    def begin(self, prompt: int, domain: str = "") -> None:
        """The tokens to come belong to this prompt of this domain."""
        self.flush()
        self._builder.begin(prompt, domain)
        if self.encoder is not None:
            self.encoder.begin(prompt, domain)

    def tokens(self, ids: Tensor) -> None:
        """Remember the token ids [T] of the chunk that passes the layers next."""
        self._drop_torn()
        if self._waiting >= _WAITING:
            self.flush()
        self._passes.append(_Pass(ids.tolist(), self.generated))
        self._waiting += len(ids)

    def foresee(self, layer: int, topk_ids: Tensor) -> None:
        """Remember what could be foreseen of that."""
        self._passes[-1].foreseen[layer] = topk_ids

    def record(self, layer: int, routing: Routing) -> None:
        """Remember the routing of the chunk's tokens at one layer."""
        self._passes[-1].layers[layer] = routing

    def flush(self) -> None:
        """Put all tokens that were remembered into the trace; a torn pass is left out."""
        if self.encoder is not None:
            self.encoder.flush()
        self._drop_torn()
        for each in self._passes:
            self._builder.tokens(each.ids, each.generated)
        for layer, router in self._routers.items() if self._passes else ():
            routings = [each.layers[layer] for each in self._passes]
            for each in self._passes:
                if layer in each.foreseen:
                    _compare(self._builder, layer, each.foreseen[layer], each.layers[layer].topk_ids)
            topk_ids, topk_weights, logits = (torch.cat(parts) for parts in zip(*routings, strict=True))
            _hand_over(self._builder, layer, Routing(topk_ids, topk_weights, logits), gate_scores(logits, router))
        self._passes.clear()
        self.recorded += self._waiting
        self._waiting = 0

    def _drop_torn(self) -> None:
        if self._passes and len(self._passes[-1].layers) < len(self._routers):
            self._waiting -= len(self._passes.pop().ids)


@dataclass(frozen=True, slots=True)
class Text:
    """One text of a set: its number, its domain and its ids."""

    prompt: int
    domain: str
    ids: Sequence[int]


class LayerwiseRecorder:
    """Fills a trace while all texts of a set pass a layer before the next one."""

    generated = False
    encoder: RoutingObserver | None = None

    def __init__(self, spec: ModelSpec, builder: TraceBuilder, texts: Sequence[Text]) -> None:
        self._builder, self._texts = builder, texts
        self._routers = {layer: mixture.router for layer, mixture in spec.mixtures}
        self._foreseen: Tensor | None = None
        for text in texts:
            builder.begin(text.prompt, text.domain)
            builder.tokens(text.ids, False)

    def tokens(self, ids: Tensor) -> None:
        """Nothing to remember: all texts were known at the start."""

    def foresee(self, layer: int, topk_ids: Tensor) -> None:
        """Remember what could be foreseen of the layer's routing, which comes next."""
        self._foreseen = topk_ids

    def record(self, layer: int, routing: Routing) -> None:
        """Put the routing of all texts, one after another, at one layer into the trace."""
        if self._foreseen is not None:
            _compare(self._builder, layer, self._foreseen, routing.topk_ids)
        lengths = [len(text.ids) for text in self._texts]
        scores = gate_scores(routing.logits, self._routers[layer])
        parts = zip(*(tensor.split(lengths) for tensor in (*routing, scores)), strict=True)
        for text, (topk_ids, topk_weights, logits, gates) in zip(self._texts, parts, strict=True):
            self._builder.begin(text.prompt, text.domain)
            _hand_over(self._builder, layer, Routing(topk_ids, topk_weights, logits), gates)


def _compare(builder: TraceBuilder, layer: int, foreseen: Tensor, chosen: Tensor) -> None:
    """Count the choices [T, A] that were foreseen, [T, A]."""
    right = (chosen[:, :, None] == foreseen[:, None, :]).any(-1)
    builder.foreseen(layer, int(right.sum()), right.numel())


def _hand_over(builder: TraceBuilder, layer: int, routing: Routing, scores: Tensor) -> None:
    log_sums = routing.logits.logsumexp(-1)
    topk_ids, topk_weights, scores, log_sums = (tensor.cpu() for tensor in (*routing[:2], scores, log_sums))
    if not is_finite(log_sums) or not is_finite(topk_weights):
        raise not_finite(f"in the router of layer {layer}", topk_weights.dtype)
    builder.record(layer, topk_ids.numpy(), topk_weights.float().numpy(), scores.numpy(), log_sums.numpy())
