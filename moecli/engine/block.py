"""One layer of a decoder in torch: attention, then a mixture of experts or a plain feed-forward."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from moecli.engine.attention import CrossAttention, GroupedQueryAttention, LatentAttention, Scratch
from moecli.engine.cache import LayerCache
from moecli.engine.layers import RelativeBias, RotaryEmbedding, normalise
from moecli.engine.router import Routing, route, sigmoid
from moecli.engine.weights import LayerWeights
from moecli.experts.store import ExpertStore, moe_forward
from moecli.kernels.blocking import CHUNK
from moecli.kernels.linear import ExpertBiases, feed_forward, inner, linear
from moecli.model.spec import FeedForward, GroupedQuery, Mixture, ModelSpec, Router
from moecli.model.tensors import EXPERT_MATRICES


class RoutingObserver(Protocol):
    """Sees the tokens that pass the layers, and which experts each of them takes."""

    generated: bool  # whether the tokens to come were generated; the session says so

    @property
    def encoder(self) -> RoutingObserver | None:
        """Who sees what passes an encoder, which are other tokens."""
        ...

    def tokens(self, ids: Tensor) -> None:
        """The token ids [T] that pass the layers next."""
        ...

    def record(self, layer: int, routing: Routing) -> None:
        """The routing of those tokens at one layer."""
        ...


class Block:
    """Attention, then a mixture or a feed-forward, each normed before and added to the residual stream."""

    def __init__(
        self,
        spec: ModelSpec,
        index: int,
        weights: LayerWeights,
        rotary: RotaryEmbedding,
        scratch: Scratch,
        experts: ExpertStore,
        bias: RelativeBias | None = None,
    ) -> None:
        """`index`: its number among `spec.blocks`."""
        self._spec, self._index, self._weights, self._experts = spec, index, weights, experts
        layer = spec.blocks[index]
        attention, self._ffn, self._parallel = layer.attention, layer.ffn, layer.parallel
        self._attention = (
            GroupedQueryAttention(
                attention, weights, rotary, scratch, spec.norm_eps, bias, causal=index >= len(spec.encoder)
            )
            if isinstance(attention, GroupedQuery)
            else LatentAttention(attention, weights, rotary, scratch)
        )
        self.biases = expert_biases(weights)
        self.dropped = 0  # choices of the last pass whose expert was full
        self._cross = None if layer.cross is None else CrossAttention(layer.cross, weights, scratch)

    def attend(self, x: Tensor, cache: LayerCache, prompt: int) -> Tensor:
        """x [T, D] -> [T, D]: each token sees itself and those before it, in `cache` too, where it is put.

        The same of all tokens of an encoder. `prompt`: the tokens that are read now, of which these are some.
        """
        x = x + self._branch("attn", self._attention(self._norm("attn_norm", x), cache, prompt))
        if self._cross is None or cache.cross is None:
            return x
        return x + self._cross(self._norm("cross_norm", x), cache.cross)

    def keep(self, states: Tensor, cache: LayerCache) -> None:
        """Let coming tokens attend to the encoder's states [T, D], and to no earlier ones."""
        if self._cross is not None and cache.cross is not None:
            self._cross.keep(states, cache.cross)

    def keep_input(self, x: Tensor) -> Tensor | None:
        """What `feed_forward` wants of x before attention: a copy, where the mixture reads that."""
        return x.clone() if self._spec.blocks[self._index].ffn_reads_input else None

    def feed_forward(self, x: Tensor, observer: RoutingObserver | None, kept: Tensor | None = None) -> None:
        """x [T, D], changed in place: each token by itself, and only routed experts see more than CHUNK at once.

        `kept`: of these tokens, the last of them, what `keep_input` gave.
        """
        if not isinstance(self._ffn, Mixture):
            for part in x.split(CHUNK):
                part.add_(self._branch("ffn", self._mlp("", self._norm("ffn_norm", part), self._ffn)))
            return
        normed = torch.empty_like(x)
        read = x if kept is None else kept[len(kept) - len(x) :]
        for part, out in zip(read.split(CHUNK), normed.split(CHUNK), strict=True):
            out.copy_(self._norm("ffn_norm", part))
        routing = self.route(normed, self._ffn)
        self.dropped = _dropped(routing, self._ffn.router)
        if observer is not None:
            observer.record(self._index, routing)
        sums = self.moe_forward(normed, self._ffn, routing)
        for part, tokens, routed in zip(x.split(CHUNK), normed.split(CHUNK), sums.split(CHUNK), strict=True):
            out = routed.to(x.dtype)
            if self._ffn.shared is not None:
                out += self.shared_forward(tokens, self._ffn, self._ffn.shared)
            out = self._branch("ffn", out)
            if self._parallel is not None:
                out = out + self._mlp("parallel_", self._norm("parallel_norm", part), self._parallel)
            part.add_(out)

    def route(self, x: Tensor, mixture: Mixture) -> Routing:
        """The experts that each token of the normed x [T, D] takes, and their weights."""
        w = self._weights
        return route(x, w["router"], w.get("router_bias"), mixture.router, w.get("router_linear_bias"))

    def moe_forward(self, x: Tensor, mixture: Mixture, routing: Routing) -> Tensor:
        """What the selected experts make of normed x [T, D]: [T, D] in float32."""
        return moe_forward(
            self._experts, self._index, mixture.expert.activation, x, routing.topk_ids, routing.topk_weights,
            self.biases,
        )  # fmt: skip

    def shared_forward(self, x: Tensor, mixture: Mixture, shared: FeedForward) -> Tensor:
        """What the shared expert makes of normed x [T, D]: [T, D]."""
        out = self._mlp("shared_", x, shared)
        if not mixture.shared_gate:
            return out
        return out * sigmoid(linear(x, self._weights["shared_gate"]))

    def _mlp(self, prefix: str, x: Tensor, ffn: FeedForward) -> Tensor:
        w = self._weights
        if not ffn.gated:
            return linear(inner(x, [w.matrix(f"{prefix}up")], ffn.activation), w.matrix(f"{prefix}down")).to(x.dtype)
        return feed_forward(x, w.matrix(f"{prefix}gate_up"), w.matrix(f"{prefix}down"), ffn.activation)

    def _norm(self, role: str, x: Tensor) -> Tensor:
        return normalise(x, self._weights[role], self._spec.norm, self._spec.norm_eps)

    def _branch(self, name: str, out: Tensor) -> Tensor:
        if self._spec.branch_norms:
            out = self._norm(f"post_{name}_norm", out)
        return out if self._spec.residual_multiplier == 1 else out * self._spec.residual_multiplier


def expert_biases(weights: LayerWeights) -> ExpertBiases | None:
    """Those of a layer's routed experts, if they have any."""
    tables = [table for name in EXPERT_MATRICES if (table := weights.get(f"experts_{name}_bias")) is not None]
    return ExpertBiases(tables) if tables else None


def _dropped(routing: Routing, router: Router) -> int:
    """How many choices weigh nothing, since their expert is full."""
    if router.capacity is None or len(routing.topk_ids) <= router.capacity:
        return 0
    return int((routing.topk_weights.cpu() == 0).sum())
