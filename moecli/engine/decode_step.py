"""A step of a few tokens by native calls: all layers in one where experts are resident, else sublayer by sublayer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moecli.engine.block import Block, RoutingObserver
from moecli.engine.cache import INDEX_KEYS, LayerCache, MixerCache
from moecli.engine.layers import RotaryEmbedding, growth
from moecli.engine.recurrent import small_weights
from moecli.engine.router import Routing
from moecli.engine.states import RecurrentCache
from moecli.engine.weights import LayerWeights
from moecli.experts.store import ExpertStore, each_output
from moecli.kernels.blocking import MAX_TOKENS, STATE_STEP
from moecli.kernels.decode_step import (
    AttentionSublayer,
    DecodeStepCall,
    LatentSublayer,
    Mixer,
    MoeSublayer,
    Place,
    RecurrentSublayer,
    Sublayer,
    always_on,
    serves,
)
from moecli.kernels.linear import Matrix, format_of
from moecli.kernels.native import can_cut
from moecli.kernels.recurrent import NativeMixer, Past
from moecli.model.spec import MLA, Layer, Mixture, ModelSpec, Recurrent, Scoring


class NativeLayer:
    """One layer of a decode step: a native call for each sublayer, and its block's torch where there is none."""

    def __init__(
        self,
        spec: ModelSpec,
        index: int,
        weights: LayerWeights,
        rotary: RotaryEmbedding,
        experts: ExpertStore,
        block: Block,
    ) -> None:
        self._index, self._rotary, self._experts, self._block = index, rotary, experts, block
        self._layer = layer = spec.layers[index]
        self._mixture = layer.ffn if isinstance(layer.ffn, Mixture) else None
        self._mixes, self._feeds, self._indexer = layer.mixes, layer.feeds, block.indexer
        self.attention = mixer_sublayer(spec, index, weights) if layer.mixes else None
        self.moe = moe_sublayer(spec, index, weights, experts) if layer.feeds else None
        self._attention_call = DecodeStepCall([(self.attention, None)])
        self._moe_call = DecodeStepCall([(None, self.moe)])

    @property
    def native(self) -> bool:
        """Whether there is a native call for each sublayer that it has."""
        return (self.attention is not None or not self._mixes) and (self.moe is not None or not self._feeds)

    @property
    def resident(self) -> bool:
        """Whether native code alone can take a token through all of it."""
        return self.native and self._indexer is None and (self.moe is None or self.moe.resident)

    def attend(self, x: Tensor, caches: Sequence[MixerCache]) -> Tensor:
        """x [T, D] -> [T, D], perhaps the same tensor: as many tokens of each text, appended to the texts' `caches`."""
        if self.attention is None and self._mixes:
            return self._block.attend(x, caches[0], 1)  # one token of one text
        return self.attend_natively(x, caches) if self._indexer is None else self._attend_indexed(x, caches)

    def attend_natively(self, x: Tensor, caches: Sequence[MixerCache]) -> Tensor:
        """The same by one native call."""
        self.reserve(len(x), caches)
        return self._attention_call(x) if self._mixes else x

    def _attend_indexed(self, x: Tensor, caches: Sequence[MixerCache]) -> Tensor:
        """The same, natively while every token is chosen; one that can't see all before it goes through the block."""
        assert self._indexer is not None
        each = len(x) // len(caches)
        if all(self._indexer.seen_whole(cache.length, each) == each for cache in caches):
            if self._indexer.shared:
                return self.attend_natively(x, caches)
            parts = x.split(each)
            keys = [self._block.index_keys(*pair) for pair in zip(parts, (c.length for c in caches), strict=True)]
            x = self.attend_natively(x, caches)
            for some, cache in zip(keys, caches, strict=True):
                assert isinstance(cache, LayerCache)
                cache.fill(INDEX_KEYS, some)
            return x
        if len(x) > 1:
            tokens = zip(x.split(1), (cache for cache in caches for _ in range(each)), strict=True)
            return torch.cat([self._attend_indexed(token, [cache]) for token, cache in tokens])
        return self._block.attend(x, caches[0], 1)

    def keep(self, x: Tensor) -> Tensor | None:
        """As of its block."""
        return self._block.keep_input(x)

    def feed_forward(self, x: Tensor, observer: RoutingObserver | None, kept: Tensor | None = None) -> Tensor:
        """x [T, D] -> [T, D], perhaps the same tensor; `kept` as of its block."""
        if self.moe is None:
            if self._feeds:
                self._block.feed_forward(x, observer, kept)
        elif self.moe.resident and kept is None:
            self._moe_call(x)
            self.record_resident(len(x), observer)
        else:
            self.route(self.moe, x if kept is None else kept, observer)
            self.moe_forward(self.moe, x)
        return x

    def feed_forward_texts(self, parts: Sequence[Tensor]) -> None:
        """The same of more tokens than are a step, in `parts` of a step each, changed in place.

        A store whose experts may move is asked for each once.
        """
        moe, mixture = self.moe, self._mixture
        assert moe is not None, "such a step is of native layers alone"
        if moe.resident or mixture is None:
            for part in parts:
                self.feed_forward(part, None)
            return
        routed = []
        for part in parts:
            moe.route(part)
            held = moe.normed, moe.topk_ids, moe.topk_weights
            routed.append([each[: len(part)].clone() for each in held])
        normed, topk_ids = (torch.cat([each[place] for each in routed]) for place in range(2))
        outputs = normed.new_empty(topk_ids.numel(), normed.shape[1])
        each_output(self._experts, self._index, mixture.expert.activation, normed, topk_ids, outputs)
        made = outputs.split([ids.numel() for _, ids, _ in routed])
        for part, (some, ids, weights), its in zip(parts, routed, made, strict=True):
            moe.normed[: len(part)], moe.topk_ids[: len(part)], moe.topk_weights[: len(part)] = some, ids, weights
            moe.outputs[: len(its)] = its
            moe.combine(part)

    def route(self, moe: MoeSublayer, x: Tensor, observer: RoutingObserver | None) -> None:
        """Let the router select experts for the hidden states x [T, D], and show them to the observer."""
        moe.route(x)
        if self._mixture is not None:
            self._record(moe, len(x), observer)

    def moe_forward(self, moe: MoeSublayer, x: Tensor) -> None:
        """Add to x [T, D] what the store's selected experts, and the shared one, make of each token."""
        if self._mixture is not None:
            activation, router = self._mixture.expert.activation, self._mixture.router
            normed, topk_ids = moe.normed[: len(x)], moe.topk_ids[: len(x)]
            if router.scoring is Scoring.SIGMOID_INPUT:  # what an expert reads is another for each
                normed = (normed[:, None] * moe.topk_weights[: len(x), :, None]).flatten(0, 1)
                topk_ids = topk_ids.reshape(-1, 1)
            outputs = moe.outputs[: len(x) * router.top_k]
            each_output(self._experts, self._index, activation, normed, topk_ids, outputs, self._block.biases)
        moe.combine(x)

    def reserve(self, tokens: int, caches: Sequence[MixerCache]) -> None:
        """Make room in the texts' `caches` for the tokens that come next, in equal parts."""
        each, places, pasts = tokens // len(caches), list[Place](), list[Past]()
        for cache in caches:
            if isinstance(cache, RecurrentCache):
                pasts.append(_past(cache, each))
            elif self.attention is None:
                cache.skip(each)
            else:
                places += [
                    Place(position, cache.buffers, seen, self._growth(position))
                    for position, seen in cache.extend(each)
                ]
        if isinstance(self.attention, RecurrentSublayer):
            self.attention.reserve(pasts)
        elif self.attention is not None:
            self.attention.reserve(self._rotary.tables, places)

    def _growth(self, position: int) -> float:
        grows = self._layer.attention.query_growth
        return 1 if grows is None else float(growth(grows, torch.tensor(position)))

    def record_resident(self, tokens: int, observer: RoutingObserver | None) -> None:
        """A native call has taken tokens through resident experts: count and show which."""
        if self._mixture is not None and self.moe is not None:
            self._experts.statistics.hits += len(self.moe.topk_ids[:tokens].unique())
            self._record(self.moe, tokens, observer)

    def _record(self, moe: MoeSublayer, tokens: int, observer: RoutingObserver | None) -> None:
        if observer is not None:
            routing = Routing(*(each[:tokens].clone() for each in (moe.topk_ids, moe.topk_weights, moe.logits)))
            observer.record(self._index, routing)


class DecodeStep:
    """Takes up to `max_tokens` tokens through all layers, a single native call where that can be.

    What a token becomes does not depend, to the last bit, on the tokens beside it.
    """

    def __init__(self, layers: Sequence[NativeLayer], single_call: bool = True) -> None:
        self._layers = layers
        self.max_tokens = MAX_TOKENS if all(layer.native for layer in layers) else 1
        resident = single_call and all(layer.resident for layer in layers)
        self._call = DecodeStepCall([(layer.attention, layer.moe) for layer in layers]) if resident else None

    def forward(
        self, x: Tensor, texts: Sequence[Sequence[MixerCache]], observer: RoutingObserver | None = None
    ) -> Tensor:
        """x [T, D] -> [T, D], perhaps the same tensor: as many tokens of each text, appended to its layers' caches."""
        assert x.shape[0] <= self.max_tokens and x.shape[0] % len(texts) == 0
        layers = list(zip(self._layers, zip(*texts, strict=True), strict=True))
        if self._call is None:
            for layer, caches in layers:
                kept = layer.keep(x)
                x = layer.feed_forward(layer.attend(x, caches), observer, kept)
            return x
        for layer, caches in layers:
            layer.reserve(len(x), caches)
        self._call(x)
        for layer, _ in layers:
            layer.record_resident(len(x), observer)
        return x

    def forward_texts(self, x: Tensor, texts: Sequence[Sequence[MixerCache]]) -> Tensor:
        """A token of each of any number of texts, x [N, D] -> [N, D], perhaps the same tensor."""
        parts, first = list(x.split(self.max_tokens)), range(0, len(x), self.max_tokens)
        groups = [texts[start : start + self.max_tokens] for start in first]
        if self._call is not None or len(parts) == 1:
            return torch.cat([self.forward(*each) for each in zip(parts, groups, strict=True)])
        for number, layer in enumerate(self._layers):
            for place, group in enumerate(groups):
                parts[place] = layer.attend(parts[place], [caches[number] for caches in group])
            layer.feed_forward_texts(parts)
        return torch.cat(parts)


def _past(cache: RecurrentCache, tokens: int) -> Past:
    """What it remembers before so many tokens; a state that has grown by a step is kept before them."""
    if cache.length % STATE_STEP == 0:
        cache.snapshot()
    kept, commits = cache.extend(tokens, commits=tokens == 1), tokens == 1
    return Past(cache.rows, cache.state, cache.record, kept, commits)


def mixer_sublayer(spec: ModelSpec, index: int, weights: LayerWeights) -> Mixer | None:
    """A layer's attention, or what stands in its place, as a native call; None for other formats and devices."""
    recurrent = spec.layers[index].recurrent
    return _attention(spec, index, weights) if recurrent is None else _recurrent(spec, index, recurrent, weights)


def _recurrent(spec: ModelSpec, index: int, recurrent: Recurrent, weights: LayerWeights) -> RecurrentSublayer | None:
    matrices = [weights.matrix("mixer_in"), weights.matrix("mixer_out")]
    sublayer = _sublayer(spec, "attn", weights, format_of(matrices[1]), spec.layers[index])
    if not serves(sublayer, matrices):
        return None
    return RecurrentSublayer(sublayer, NativeMixer(recurrent, small_weights(weights), sublayer.dtype), weights)


def _attention(spec: ModelSpec, index: int, weights: LayerWeights) -> AttentionSublayer | LatentSublayer | None:
    attention = spec.layers[index].attention
    if isinstance(attention, MLA):
        roles = ["o", "q" if attention.query_rank is None else "q_b"]
    else:
        roles = ["o", attention.projection]
    matrices = [weights.matrix(role) for role in (*roles, *(["attn_gate"] if attention.gate_width else []))]
    sublayer = _sublayer(spec, "attn", weights, format_of(matrices[0]), spec.layers[index])
    if not serves(sublayer, matrices):
        return None
    if isinstance(attention, MLA):
        return LatentSublayer(sublayer, attention, weights)
    return AttentionSublayer(sublayer, attention, weights)


def moe_sublayer(spec: ModelSpec, index: int, weights: LayerWeights, experts: ExpertStore) -> MoeSublayer | None:
    """A layer's mixture or plain feed-forward as a native call.

    None for other formats and devices, for routed and shared experts in two formats, for stacked gates and ups whose
    rows interlace, and for a mixture with both a shared expert and a dense block beside it.
    """
    layer = spec.layers[index]
    ffn, (shared, prefix) = layer.ffn, always_on(layer)
    if isinstance(ffn, Mixture) and ffn.shared is not None and layer.parallel is not None:
        return None
    inner = "gate_up" if shared is None or shared.gated else "up"
    matrices: list[Matrix] = [weights.matrix(f"{prefix}{role}") for role in (inner, "down")] if shared else []
    dtype = experts.dtype if isinstance(ffn, Mixture) else format_of(matrices[0])
    if shared and shared.gated and not can_cut(dtype, shared.intermediate_size):
        return None
    addresses = experts.addresses(index) if isinstance(ffn, Mixture) else None
    sublayer = _sublayer(spec, "ffn", weights, dtype, layer)
    return MoeSublayer(sublayer, layer, weights, addresses) if serves(sublayer, matrices) else None


def _sublayer(spec: ModelSpec, name: str, weights: LayerWeights, dtype: str, layer: Layer) -> Sublayer:
    """`name`: of the half, "attn" or "ffn"."""
    last = name == "ffn"
    norm = "attn_norm" if last and layer.one_norm else f"{name}_norm"
    before, carry = weights[norm], None if layer.carries is None else layer.carries[last]
    return Sublayer(
        dtype, before.dtype, spec.norm, spec.norm_eps, spec.residual_multiplier if carry is None else carry.added,
        before,
        after=weights[f"post_{name}_norm"] if spec.branch_norms else None,
        before_bias=weights.get(f"{norm}_bias"),
        scale=weights.get("output_scale") if last else None,
        kept=0 if carry is None else carry.kept,
    )  # fmt: skip
