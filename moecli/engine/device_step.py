"""A step of a few tokens on a GPU: a CUDA graph for every run of layers that needs no look from the host.

A layer whose experts are all on the card is routed and computed there. Where some are in RAM a graph ends at the
router's choice; the next one computes those on the card while the CPU computes the others. Where some are on disk the
expert store is asked for all of them, as on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from moecli.engine.attention import triton_appends
from moecli.engine.block import RoutingObserver
from moecli.engine.cache import Cache, LayerCache
from moecli.engine.cuda_graphs import GraphRecorder, Stage
from moecli.engine.device_hops import Hop, work_of
from moecli.engine.device_layers import DeviceAttention, DeviceFeedForward, DeviceLatentAttention, Product
from moecli.engine.layers import RotaryEmbedding
from moecli.engine.router import Routing
from moecli.engine.weights import DenseWeights
from moecli.experts.gpu_offloaded import DeviceStatistics
from moecli.experts.store import ExpertStore
from moecli.formats import PLAIN, SEARCHED
from moecli.kernels.blocking import MAX_TOKENS
from moecli.kernels.gpu import activations, router
from moecli.kernels.gpu.launch import card
from moecli.kernels.gpu.norms import Branch, Normed, add_and_norm
from moecli.kernels.linear import format_of
from moecli.model.spec import MLA, GroupedQuery, Layer, Mixture, ModelSpec, NormKind


def serves(spec: ModelSpec, dense: DenseWeights, experts: ExpertStore) -> bool:
    """Whether these kernels compute every layer of a model, in the formats that its weights have."""
    matrices = [matrix for layer in dense.layers for matrix in layer.matrices()]
    formats = {format_of(each) for each in matrices} | ({experts.dtype} if spec.mixtures else set())
    plain = not (spec.encoder or spec.norm_bias or spec.lm_head_bias or spec.logit_softcap)
    plain = plain and spec.norm is not NormKind.ZERO_CENTRED
    served = plain and formats <= {*PLAIN, *SEARCHED} and all(map(_serves_layer, spec.layers))
    return served and (not any(isinstance(layer.attention, MLA) for layer in spec.layers) or _serves_latents(dense))


def _serves_latents(dense: DenseWeights) -> bool:
    """Without tensor cores a block of latents takes more shared memory than a T4 or, in float32, an RTX has."""
    on_card = dense.device.type == "cuda"
    return not on_card or card(dense.device).has_tensor_cores(dense.dtype.itemsize)


def _serves_layer(layer: Layer) -> bool:
    ffn = layer.ffn
    shared = ffn.shared if isinstance(ffn, Mixture) else ffn
    inner = [each for each in (shared, ffn.expert if isinstance(ffn, Mixture) else None) if each is not None]
    attention = layer.attention
    usual = attention.rope.dims > 0 if isinstance(attention, MLA) else triton_appends(attention)
    return (
        layer.mixes
        and layer.feeds
        and not (layer.recurrent or layer.parallel or layer.ffn_reads_input or layer.cross or layer.carries)
        and not attention.rope.depends_on_length
        and usual
        and not attention.gate_width
        and not (attention.query_growth or getattr(attention, "chunked", False) or getattr(attention, "sinks", False))
        and not getattr(attention, "indexer", None)
        and (not isinstance(ffn, Mixture) or (router.serves(ffn.router) and ffn.shared_scale == 1))
        and all(each.activation in activations.NUMBERS and not each.bias for each in inner)
        and (shared is None or (shared.gated and shared.intermediate_size % 16 == 0))  # whole strips of gate
    )


@dataclass(slots=True)
class _Program:
    """A step of T tokens, as many of each of some texts: what is done in turn, and its buffers."""

    told: Tensor  # int32 on the host: T ids, then of each window and text where its tokens and its rows begin
    logits: Tensor  # float32 [T, V] on the host
    x: Tensor  # [T, D]
    places: dict[int | None, int]  # by window: where its places begin in what is told
    steps: list[Callable[[], None]] = field(default_factory=list)
    routings: dict[int, Routing] = field(default_factory=dict)
    resident: list[int] = field(default_factory=list)  # layers that need nothing of the host
    chosen: Tensor | None = None  # int64 on the host: who was chosen there, layer after layer
    states: Tensor | None = None  # normed, [T, D]


class DeviceStep:
    """Takes up to `max_tokens` tokens through all layers, from ids to normed states and logits."""

    max_tokens = MAX_TOKENS

    def __init__(
        self, spec: ModelSpec, dense: DenseWeights, rotary: Sequence[RotaryEmbedding], experts: ExpertStore
    ) -> None:
        self._spec, self._dense, self._store = spec, dense, experts
        self._attention = [
            DeviceAttention(layer.attention, weights, turns, spec.norm_eps)
            if isinstance(layer.attention, GroupedQuery)
            else DeviceLatentAttention(layer.attention, weights, turns)
            for layer, weights, turns in zip(spec.layers, dense.layers, rotary, strict=True)
        ]
        self._feed_forward = [
            DeviceFeedForward(spec, index, weights, experts) for index, weights in enumerate(dense.layers)
        ]
        self._lm_head = Product(dense.outside.matrix("lm_head" if "lm_head" in dense.outside else "embedding"))
        self._programs: WeakKeyDictionary[Cache, dict[tuple[int, tuple[ref[Cache], ...]], _Program]] = (
            WeakKeyDictionary()
        )
        self._last: _Program | None = None
        self._recorder = GraphRecorder(dense.device) if dense.device.type == "cuda" else None

    def forward(self, ids: Tensor, caches: Sequence[Cache], observer: RoutingObserver | None = None) -> Tensor:
        """Normed states [T, D] of ids [T], as many of each text, appended to the texts' caches.

        They are those of the next call from then on.
        """
        program = self._program(len(ids), caches)
        self._tell(program, ids, caches)
        for step in program.steps:
            step()
        if self._recorder is not None:
            self._recorder.wait()
        self._count(program, observer)
        self._last = program
        assert program.states is not None
        return program.states

    def logits(self, states: Tensor) -> Tensor | None:
        """The scores after the last call's last states [t, D], float32 [t, V] on the host; None of any others."""
        last = self._last
        if last is None or last.states is None or last.states[-len(states) :].data_ptr() != states.data_ptr():
            return None
        return last.logits[-len(states) :].clone()

    def _program(self, tokens: int, caches: Sequence[Cache]) -> _Program:
        """That of these texts, made when they first come; it lasts as long as the first one's cache."""
        known = self._programs.setdefault(caches[0], {})
        key = tokens, tuple(map(ref, caches[1:]))
        if key not in known:
            for tokens_of, others in list(known):
                if any(other() is None for other in others):  # whose memory a program would hold
                    del known[tokens_of, others]
            known[key] = self._compose(tokens, caches)
        return known[key]

    def _compose(self, tokens: int, caches: Sequence[Cache]) -> _Program:
        spec = self._spec
        windows = {layer.attention.window for layer in spec.layers}
        places = {window: tokens + 2 * len(caches) * number for number, window in enumerate(windows)}
        program = _Program(
            self._host(tokens + 2 * len(caches) * len(windows), dtype=torch.int32),
            self._host(tokens, spec.vocab_size),
            self._on_device(tokens, spec.hidden_size, dtype=self._dense.dtype),
            places,
        )
        told = self._on_device(len(program.told), dtype=torch.int32)
        first, begin = 0, None
        for index, half in enumerate(self._feed_forward):
            if half.mixture is None or self._all_on_device(half):
                program.resident += [index] if half.mixture else []
                continue
            hop = self._hop(index, tokens, half.mixture.router.top_k)
            program.steps.append(self._stage(program, caches, told, range(first, index + 1), begin, hop))
            program.steps.append(work_of(hop, half, self._store, self._recorder))
            first, begin = index + 1, hop
        if program.resident:
            program.chosen = self._host(
                sum(tokens * self._top_k(index) for index in program.resident), dtype=torch.int64
            )
        program.steps.append(self._stage(program, caches, told, range(first, len(spec.layers)), begin, None))
        return program

    def _all_on_device(self, half: DeviceFeedForward) -> bool:
        return half.experts is not None and bool(half.experts.records.all())

    def _top_k(self, layer: int) -> int:
        mixture = self._feed_forward[layer].mixture
        assert mixture is not None
        return mixture.router.top_k

    def _hop(self, layer: int, tokens: int, top_k: int) -> Hop:
        width = self._spec.hidden_size
        return Hop(
            layer,
            self._on_device(tokens * top_k, width),
            self._host(tokens, top_k, dtype=torch.int64),
            self._host(tokens, width, dtype=self._dense.dtype),
            self._host(tokens * top_k, width),
        )

    def _host(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, pin_memory=self._recorder is not None)

    def _on_device(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._dense.device)

    def _stage(
        self,
        program: _Program,
        caches: Sequence[Cache],
        told: Tensor,
        layers: range,
        begin: Hop | None,
        end: Hop | None,
    ) -> Stage:
        """The states through some layers, from what a hop gave, or from the ids, to what another asks, or the end."""
        tokens = len(program.x)
        buffers = [[cache.layers[index].buffers for cache in caches] for index in layers]
        places = {
            window: told[place : place + 2 * len(caches)].view(-1, 2).unbind()
            for window, place in program.places.items()
        }

        def launch() -> None:
            branch: Branch | None = None
            if begin is None:
                told.copy_(program.told, non_blocking=True)
                if self._dense.has_table:
                    program.x.copy_(self._embed(told[:tokens].long()))
            else:
                assert begin.normed is not None
                branch = self._feed_forward[begin.layer].branch(begin.normed, begin.routing, begin.outputs)
            before = layers.start - 1  # whose feed-forward the branch is
            for index, texts in zip(layers, buffers, strict=True):
                normed = self._add(program.x, branch, before, "ffn", self._dense.layers[index]["attn_norm"])
                where = places[self._spec.layers[index].attention.window]
                attended = self._attention[index](normed, list(zip(texts, where, strict=True)))
                normed = self._add(program.x, Branch(attended), index, "attn", self._dense.layers[index]["ffn_norm"])
                half, routing, outputs = self._feed_forward[index], None, None
                if half.mixture is not None:
                    routing = program.routings[index] = half.route(normed)
                    if end is not None and index == end.layer:
                        end.normed, end.routing = normed, routing
                        end.chosen.copy_(routing.topk_ids, non_blocking=True)
                        end.states.copy_(normed.states, non_blocking=True)
                        return
                    outputs = half.routed(normed, routing)
                branch, before = half.branch(normed, routing, outputs), index
            final = self._add(program.x, branch, before, "ffn", self._dense.outside["final_norm"])
            self._finish(program, final)

        return Stage(launch, self._recorder)

    def _finish(self, program: _Program, final: Normed) -> None:
        program.states = final.states
        logits = self._lm_head(final).float()
        multiplier = self._spec.logit_multiplier
        program.logits.copy_(logits if multiplier == 1 else logits * multiplier, non_blocking=True)
        if program.chosen is not None:
            chosen = [program.routings[layer].topk_ids.flatten() for layer in program.resident]
            program.chosen.copy_(torch.cat(chosen), non_blocking=True)

    def _add(self, x: Tensor, branch: Branch | None, layer: int, half: str, norm: Tensor) -> Normed:
        """Add a half of a layer to the states, with the norm after it, and norm them for what comes next."""
        spec = self._spec
        after = self._dense.layers[layer][f"post_{half}_norm"] if spec.branch_norms and branch is not None else None
        return add_and_norm(
            x, branch, norm, after=after, kind=spec.norm, eps=spec.norm_eps, multiplier=spec.residual_multiplier
        )

    def _embed(self, ids: Tensor) -> Tensor:
        x = self._dense.embed(ids)
        return x if self._spec.embedding_multiplier == 1 else x * self._spec.embedding_multiplier

    def _tell(self, program: _Program, ids: Tensor, caches: Sequence[Cache]) -> None:
        """Say which tokens come and where they go, and make room for them in the caches."""
        each = len(ids) // len(caches)
        program.told[: len(ids)] = ids
        for number, cache in enumerate(caches):
            starts: dict[int | None, tuple[int, int]] = {}
            for layer, mine in zip(self._spec.layers, cache.layers, strict=True):
                assert isinstance(mine, LayerCache), "a model with states is no device step"
                start = mine.length
                mine.extend(each)
                starts[layer.attention.window] = start, mine.first
            for window, where in starts.items():
                place = program.places[window] + 2 * number
                program.told[place : place + 2] = torch.tensor(where, dtype=torch.int32)
        if not self._dense.has_table:
            program.x.copy_(self._embed(ids))

    def _count(self, program: _Program, observer: RoutingObserver | None) -> None:
        """Tell the store how many of its experts on the device were used, and the observer which of all."""
        if program.chosen is not None:
            chosen = program.chosen.tolist()
            for layer in program.resident:
                count = len(program.x) * self._top_k(layer)
                self._count_hits(len(set(chosen[:count])))
                del chosen[:count]
        if observer is not None:
            for layer, routing in program.routings.items():
                observer.record(layer, Routing(*(each.clone() for each in routing)))

    def _count_hits(self, experts: int) -> None:
        statistics = self._store.statistics
        statistics.hits += experts
        if isinstance(statistics, DeviceStatistics):
            statistics.device_hits += experts
