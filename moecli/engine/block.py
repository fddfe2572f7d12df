"""One layer of a decoder in torch: attention, then a mixture of experts or a plain feed-forward."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from moecli.engine.attention import CrossAttention, GroupedQueryAttention, LatentAttention, Scratch
from moecli.engine.cache import LayerCache, MixerCache
from moecli.engine.indexer import LightningIndexer
from moecli.engine.layers import RelativeBias, RotaryEmbedding, normalise, rms_norm
from moecli.engine.recurrent import RecurrentMixer
from moecli.engine.router import Routing, route, sigmoid
from moecli.engine.states import RecurrentCache
from moecli.engine.weights import LayerWeights
from moecli.experts.store import ExpertStore, moe_forward
from moecli.kernels.blocking import CHUNK
from moecli.kernels.linear import ExpertBiases, feed_forward, inner, linear
from moecli.model.spec import MLA, FeedForward, Mixture, ModelSpec, NormKind, Router, Scoring
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

    def foresee(self, layer: int, topk_ids: Tensor) -> None:
        """The experts [T, A] that a layer's router would take of those tokens as they enter the layer.

        It is told of prompts alone, before the routing.
        """
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
        self._layer = layer = spec.blocks[index]
        attention, self._ffn, self._parallel = layer.attention, layer.ffn, layer.parallel
        self._recurrent = None if layer.recurrent is None else RecurrentMixer(layer.recurrent, weights)
        self._attention: GroupedQueryAttention | LatentAttention | None = None
        if isinstance(attention, MLA):
            self._attention = LatentAttention(attention, weights, rotary, scratch)
        elif attention.heads:
            self._attention = GroupedQueryAttention(
                attention, weights, rotary, scratch, spec.norm_eps, bias, causal=index >= len(spec.encoder),
                zero_centred=spec.norm is NormKind.ZERO_CENTRED,
            )  # fmt: skip
        self.biases = expert_biases(weights)
        self.dropped = 0  # choices of the last pass whose expert was full
        self._cross = None if layer.cross is None else CrossAttention(layer.cross, weights, scratch)

    def foresee(self, x: Tensor, observer: RoutingObserver) -> None:
        """Route x [T, D] as it is before attention, and tell the observer: the layer before could have done so."""
        if isinstance(ffn := self._ffn, Mixture):
            norm = "attn_norm" if self._layer.one_norm else "ffn_norm"
            scaled = ffn.router.reads_scaled
            seen = (self._scaled(part) if scaled else self._norm(norm, part) for part in x.split(CHUNK))
            observer.foresee(self._index, torch.cat([self.route(part, ffn).topk_ids for part in seen]))

    def attend(self, x: Tensor, cache: MixerCache, prompt: int) -> Tensor:
        """x [T, D] -> [T, D]: each token sees itself and those before it, in `cache` too, where it is put.

        The same of all tokens of an encoder. `prompt`: the tokens that are read now, of which these are some.
        """
        if isinstance(cache, RecurrentCache):
            assert self._recurrent is not None
            normed = self._norm("attn_norm", x)
            return self._sum(0, x, normed, self._branch("attn", self._recurrent(normed, cache)))
        if self._attention is None:
            cache.skip(len(x))
            return x
        normed = self._norm("attn_norm", x)
        x = self._sum(0, x, normed, self._branch("attn", self._attention(normed, cache, prompt)))
        if self._cross is None or cache.cross is None:
            return x
        return x + self._cross(self._norm("cross_norm", x), cache.cross)

    @property
    def indexer(self) -> LightningIndexer | None:
        """What chooses the tokens that its attention sees."""
        return getattr(self._attention, "indexer", None)

    def index_keys(self, x: Tensor, start: int) -> Tensor:
        """What that keeps of x [T, D], the first of it at position `start`: [T, 1, d]."""
        assert self.indexer is not None
        return self.indexer.keys(self._norm("attn_norm", x), start)

    def keep(self, states: Tensor, cache: MixerCache) -> None:
        """Let coming tokens attend to the encoder's states [T, D], and to no earlier ones."""
        if self._cross is not None and isinstance(cache, LayerCache) and cache.cross is not None:
            self._cross.keep(states, cache.cross)

    def keep_input(self, x: Tensor) -> Tensor | None:
        """What `feed_forward` wants of x before attention: a copy, where the mixture reads that."""
        return x.clone() if self._layer.ffn_reads_input else None

    def feed_forward(self, x: Tensor, observer: RoutingObserver | None, kept: Tensor | None = None) -> None:
        """x [T, D], changed in place: each token by itself, and only routed experts see more than CHUNK at once.

        `kept`: of these tokens, the last of them, what `keep_input` gave.
        """
        read = x if kept is None else kept[len(kept) - len(x) :]
        norm = "attn_norm" if self._layer.one_norm else "ffn_norm"
        if not isinstance(self._ffn, Mixture):
            if not self._ffn.intermediate_size:
                return
            for part, source in zip(x.split(CHUNK), read.split(CHUNK), strict=True):
                tokens = self._norm(norm, source)
                self._add(part, tokens, self._branch("ffn", self._mlp("", tokens, self._ffn)))
            return
        normed = torch.empty_like(x)
        for part, out in zip(read.split(CHUNK), normed.split(CHUNK), strict=True):
            out.copy_(self._norm(norm, part))
        routing = self.route(self._scaled(read) if self._ffn.router.reads_scaled else normed, self._ffn)
        self.dropped = _dropped(routing, self._ffn.router)
        if observer is not None:
            observer.record(self._index, routing)
        sums = self.moe_forward(normed, self._ffn, routing)
        for part, tokens, routed in zip(x.split(CHUNK), normed.split(CHUNK), sums.split(CHUNK), strict=True):
            out = routed.to(x.dtype)
            if self._ffn.shared is not None:
                out += self.shared_forward(tokens, self._ffn, self._ffn.shared)
            if self._parallel is None:
                self._add(part, tokens, self._branch("ffn", out))
                continue
            beside = self._mlp("parallel_", self._norm("parallel_norm", part), self._parallel)
            if self._layer.parallel_norms:
                out = self._norm("post_mixture_norm", out) + self._norm("post_parallel_norm", beside)
                self._add(part, tokens, self._branch("ffn", out))
            else:
                self._add(part, tokens, self._branch("ffn", out) + beside)

    def _sum(self, half: int, x: Tensor, normed: Tensor, out: Tensor) -> Tensor:
        """What goes on after a half, which made `out` of `normed`."""
        if self._layer.carries is None:
            return x + out
        carry = self._layer.carries[half]
        return (normed * carry.kept).add_(out, alpha=carry.added)

    def _add(self, x: Tensor, normed: Tensor, out: Tensor) -> None:
        """The layer's last addition, in place."""
        if self._layer.carries is None:
            x.add_(out)
        else:
            x.copy_(self._sum(1, x, normed, out))
        if self._layer.output_scale:
            x.mul_(self._weights["output_scale"])

    def route(self, x: Tensor, mixture: Mixture) -> Routing:
        """The experts that each token takes, of what their router reads of them [T, D], and their weights."""
        w = self._weights
        routing = route(x, w["router"], w.get("router_bias"), mixture.router, w.get("router_linear_bias"))
        if (scale := w.get("router_expert_scale")) is None:
            return routing
        return routing._replace(topk_weights=routing.topk_weights * scale[routing.topk_ids])

    def _scaled(self, x: Tensor) -> Tensor:
        """x [T, D], each token by its own root of the mean square, times the router's vector / sqrt(D): float32."""
        return rms_norm(x.float(), self._weights["router_scale"], self._spec.norm_eps).mul_(x.shape[1] ** -0.5)

    def moe_forward(self, x: Tensor, mixture: Mixture, routing: Routing) -> Tensor:
        """What the selected experts make of normed x [T, D]: [T, D] in float32."""
        topk_ids, topk_weights = routing.topk_ids, routing.topk_weights
        if mixture.router.scoring is Scoring.SIGMOID_INPUT:  # what an expert reads is another for each
            x = (x[:, None] * topk_weights[..., None]).to(x.dtype).flatten(0, 1)
            topk_ids, topk_weights = topk_ids.view(-1, 1), torch.ones_like(topk_weights).view(-1, 1)
        sums = moe_forward(
            self._experts, self._index, mixture.expert.activation, x, topk_ids, topk_weights, self.biases
        )
        return sums if len(sums) == len(routing.topk_ids) else sums.unflatten(0, (-1, mixture.router.top_k)).sum(1)

    def shared_forward(self, x: Tensor, mixture: Mixture, shared: FeedForward) -> Tensor:
        """What the shared expert makes of normed x [T, D]: [T, D]."""
        out = self._mlp("shared_", x, shared)
        if mixture.shared_gate:
            out = out * sigmoid(linear(x, self._weights["shared_gate"]))
        return out if mixture.shared_scale == 1 else out * mixture.shared_scale

    def _mlp(self, prefix: str, x: Tensor, ffn: FeedForward) -> Tensor:
        w = self._weights
        if not ffn.gated:
            return linear(inner(x, [w.matrix(f"{prefix}up")], ffn.activation), w.matrix(f"{prefix}down")).to(x.dtype)
        return feed_forward(x, w.matrix(f"{prefix}gate_up"), w.matrix(f"{prefix}down"), ffn.activation)

    def _norm(self, role: str, x: Tensor) -> Tensor:
        w = self._weights
        return normalise(x, w[role], self._spec.norm, self._spec.norm_eps, w.get(f"{role}_bias"))

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
