"""The decoder: token ids through every block to logits. It asks a store for experts and knows nothing of files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.engine.attention import GroupedQueryAttention, LatentAttention, Scratch
from moecli.engine.cache import Cache, LayerCache
from moecli.engine.layers import Rotation, normalise
from moecli.engine.router import Routing, route
from moecli.engine.token import token_attention, token_mixture
from moecli.engine.weights import DenseWeights, LayerWeights
from moecli.experts.store import ExpertStore, each_output, mix
from moecli.kernels.blocking import BUCKET, CHUNK
from moecli.kernels.decode_step import DecodeStepCall, MoeSublayer
from moecli.kernels.linear import feed_forward, linear
from moecli.model.spec import FeedForward, GroupedQuery, Mixture, ModelSpec, Rope
from moecli.planning.memory import cache_rows


class Trace(Protocol):
    """Whoever wants to see the routing."""

    generated: bool  # whether the tokens to come were generated; the session says so

    def tokens(self, ids: Tensor) -> None:
        """These [T] pass the layers next."""
        ...

    def record(self, layer: int, routing: Routing) -> None:
        """Their routing at one layer."""
        ...


class Block:
    """Attention, then a feed-forward or a mixture, each normed before and added to the residual stream.

    A token that comes alone takes a native pass through each half, where the weights have one.
    """

    def __init__(
        self,
        spec: ModelSpec,
        index: int,
        weights: LayerWeights,
        rotation: Rotation,
        scratch: Scratch,
        experts: ExpertStore,
    ) -> None:
        self._spec, self._index, self._weights = spec, index, weights
        self._rotation, self._experts = rotation, experts
        attention, self._ffn = spec.layers[index].attention, spec.layers[index].ffn
        self._attention = (
            GroupedQueryAttention(attention, weights, rotation, scratch, spec.norm_eps)
            if isinstance(attention, GroupedQuery)
            else LatentAttention(attention, weights, rotation, scratch)
        )
        self.alone = token_attention(spec, index, weights), token_mixture(spec, index, weights, experts)
        self._attend_alone = DecodeStepCall([(self.alone[0], None)])
        self._mix_alone = DecodeStepCall([(None, self.alone[1])])

    @property
    def still(self) -> bool:
        """Whether a pass can take a lone token through all of it."""
        attention, mixture = self.alone
        return attention is not None and mixture is not None and mixture.resident

    def forward(self, x: Tensor, cache: LayerCache, trace: Trace | None) -> Tensor:
        """x [T, D] -> [T, D]."""
        return self.transform(self.attend(x, cache), trace)

    def attend(self, x: Tensor, cache: LayerCache) -> Tensor:
        """The first half, where tokens see those before them in `cache`."""
        if x.shape[0] == 1 and self.alone[0]:
            self.stand(cache)
            return self._attend_alone(x)
        return x + self._branch("attn", self._attention(self._norm("attn_norm", x), cache))

    def transform(self, x: Tensor, trace: Trace | None) -> Tensor:
        """The second half, each token by itself."""
        if x.shape[0] == 1 and self.alone[1]:
            return self._transform_alone(x, self.alone[1], trace)
        normed = self._norm("ffn_norm", x)
        if isinstance(self._ffn, Mixture):
            return x + self._branch("ffn", self._mixture(normed, self._ffn, trace))
        return x + self._branch("ffn", self._feed_forward("", normed, self._ffn))

    def stand(self, cache: LayerCache) -> None:
        """A lone token is coming: make room for it."""
        attention, _ = self.alone
        assert attention is not None
        attention.reserve(self._rotation.tables, cache.length, cache.buffers, cache.extend())

    def passed(self, trace: Trace | None) -> None:
        """A lone token has taken its experts."""
        _, one = self.alone
        if one is None or not isinstance(self._ffn, Mixture):
            return
        if one.resident:
            self._experts.statistics.hits += one.topk_ids.shape[1]
        if trace is not None:
            trace.record(self._index, Routing(one.topk_ids.clone(), one.topk_weights.clone(), one.logits.clone()))

    def _transform_alone(self, x: Tensor, one: MoeSublayer, trace: Trace | None) -> Tensor:
        if one.resident:
            self._mix_alone(x)
        else:
            assert isinstance(self._ffn, Mixture)
            one.route(x)
            activation = self._ffn.expert.activation
            each_output(self._experts, self._index, activation, one.normed, one.topk_ids, one.outputs)
            one.combine(x)
        self.passed(trace)
        return x

    def _mixture(self, x: Tensor, mixture: Mixture, trace: Trace | None) -> Tensor:
        routing = route(x, self._weights["router"], self._weights.get("router_bias"), mixture.router)
        if trace is not None:
            trace.record(self._index, routing)
        out = mix(self._experts, self._index, mixture.expert.activation, x, routing.chosen, routing.weights)
        if mixture.shared is None:
            return out
        for tokens, sums in zip(x.split(CHUNK), out.split(CHUNK), strict=True):
            shared = self._feed_forward("shared_", tokens, mixture.shared)
            if mixture.shared_gate:
                shared = shared * F.linear(tokens, self._weights["shared_gate"]).sigmoid()
            sums += shared
        return out

    def _feed_forward(self, prefix: str, x: Tensor, ffn: FeedForward) -> Tensor:
        w = self._weights
        return feed_forward(x, w.matrix(f"{prefix}gate_up"), w.matrix(f"{prefix}down"), ffn.activation)

    def _norm(self, role: str, x: Tensor) -> Tensor:
        return normalise(x, self._weights[role], self._spec.norm, self._spec.norm_eps)

    def _branch(self, name: str, out: Tensor) -> Tensor:
        if self._spec.branch_norms:
            out = self._norm(f"post_{name}_norm", out)
        return out if self._spec.residual_multiplier == 1 else out * self._spec.residual_multiplier


class Decoder:
    """A model ready to run: dense weights in memory, experts behind a store."""

    def __init__(self, spec: ModelSpec, dense: DenseWeights, experts: ExpertStore, positions: int) -> None:
        self.spec = spec
        self.experts = experts
        self._outside, self._embedding = dense.outside, dense.embed
        self.dtype, self.device = dense.dtype, dense.device
        self._rotations: dict[Rope, Rotation] = {
            layer.attention.rope: Rotation(layer.attention.rope, positions, self.dtype, self.device)
            for layer in spec.layers
        }
        scratch = Scratch()
        self._blocks = [
            Block(spec, index, weights, self._rotations[layer.attention.rope], scratch, experts)
            for index, (layer, weights) in enumerate(zip(spec.layers, dense.layers, strict=True))
        ]
        self._pass = DecodeStepCall([b.alone for b in self._blocks]) if all(b.still for b in self._blocks) else None

    def new_cache(self, capacity: int, chunk: int) -> Cache:
        return Cache(self.spec, capacity, chunk, self.dtype, self.device)

    def forward(self, ids: Tensor, cache: Cache, trace: Trace | None = None) -> Tensor:
        """Feed `ids` [T] after what `cache` holds, chunk by chunk; returns the last chunk's normed states [t, D]."""
        with torch.inference_mode():
            for rotation in self._rotations.values():
                rotation.prepare(cache.length + len(ids))
            for part in ids.to(self.device).split(cache.chunk):
                states = self._chunk(part, cache, trace)
            return normalise(states, self._outside["final_norm"], self.spec.norm, self.spec.norm_eps)

    def survey(self, texts: Sequence[Tensor], chunk: int, trace: Trace) -> None:
        """Route every token of several texts [T], each from its own start, asking for each expert once per layer.

        All hidden states are kept from layer to layer. Only the routed experts see more than `chunk` tokens at a time.
        """
        bucket = min(BUCKET, chunk)
        longest = -(-max(map(len, texts)) // bucket) * bucket
        with torch.inference_mode():
            x = torch.cat([self._embed(text.to(self.device)) for text in texts])
            for block, layer in zip(self._blocks, self.spec.layers, strict=True):
                rows = cache_rows(layer.attention, longest, chunk)
                cache = LayerCache(layer.attention, rows, self.dtype, self.device)
                for text in x.split([len(text) for text in texts]):
                    cache.clear()
                    self._rotations[layer.attention.rope].prepare(len(text))
                    for part in text.split(chunk):
                        # As many rows for many lengths: the library compiles and keeps a product for each shape.
                        padded = F.pad(part, (0, 0, 0, -len(part) % bucket))
                        part.copy_(block.attend(padded, cache)[: len(part)])
                for part in x.split(len(x) if isinstance(layer.ffn, Mixture) else chunk):
                    part.copy_(block.transform(part, trace))

    def _embed(self, ids: Tensor) -> Tensor:
        x = self._embedding(ids)  # [t, D]
        return x if self.spec.embedding_multiplier == 1 else x * self.spec.embedding_multiplier

    def _chunk(self, ids: Tensor, cache: Cache, trace: Trace | None) -> Tensor:
        if trace is not None:
            trace.tokens(ids)
        x = self._embed(ids)
        blocks = list(zip(self._blocks, cache.layers, strict=True))
        if self._pass and len(ids) == 1:
            for block, layer_cache in blocks:
                block.stand(layer_cache)
            self._pass(x)
            for block, _ in blocks:
                block.passed(trace)
        else:
            for block, layer_cache in blocks:
                x = block.forward(x, layer_cache, trace)
        return x

    def logits(self, states: Tensor) -> Tensor:
        """states [t, D] -> [t, V], float32."""
        with torch.inference_mode():
            logits = linear(
                states, self._outside.matrix("lm_head" if "lm_head" in self._outside else "embedding")
            ).float()
            return logits if self.spec.logit_multiplier == 1 else logits * self.spec.logit_multiplier
