"""A step of a few tokens on a GPU: a CUDA graph for every run of layers that needs no look from the host.

A layer whose experts are all on the card is routed and computed there. Where some are elsewhere a graph ends at the
router's choice, the expert store is asked as on the CPU, and the next graph goes on with what its experts made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from moecli.engine.block import RoutingObserver
from moecli.engine.cache import Cache
from moecli.engine.device_layers import DeviceAttention, DeviceFeedForward, DeviceLatentAttention, Product
from moecli.engine.layers import RotaryEmbedding
from moecli.engine.router import Routing
from moecli.engine.weights import DenseWeights
from moecli.experts.gpu_offloaded import DeviceStatistics
from moecli.experts.store import ExpertStore, each_output
from moecli.formats import PLAIN, TILED
from moecli.kernels.blocking import MAX_TOKENS
from moecli.kernels.gpu import activations, router
from moecli.kernels.gpu.launch import card
from moecli.kernels.gpu.norms import Branch, Normed, add_and_norm
from moecli.kernels.linear import format_of
from moecli.model.spec import MLA, GroupedQuery, Layer, Mixture, ModelSpec


def serves(spec: ModelSpec, dense: DenseWeights, experts: ExpertStore) -> bool:
    """Whether these kernels compute every layer of a model, in the formats that its weights have."""
    matrices = [matrix for layer in dense.layers for matrix in layer.matrices()]
    formats = {format_of(each) for each in matrices} | ({experts.dtype} if spec.mixtures else set())
    served = not spec.encoder and formats <= {*PLAIN, *TILED} and all(map(_serves_layer, spec.layers))
    return served and (not any(isinstance(layer.attention, MLA) for layer in spec.layers) or _serves_latents(dense))


def _serves_latents(dense: DenseWeights) -> bool:
    """Without tensor cores a block of latents takes more shared memory than a T4 or, in float32, an RTX has."""
    on_card = dense.device.type == "cuda"
    return not on_card or card(dense.device).has_tensor_cores(dense.dtype.itemsize)


def _serves_layer(layer: Layer) -> bool:
    ffn = layer.ffn
    shared = ffn.shared if isinstance(ffn, Mixture) else ffn
    inner = [each for each in (shared, ffn.expert if isinstance(ffn, Mixture) else None) if each is not None]
    return (
        not (layer.parallel or layer.ffn_reads_input or layer.cross or layer.attention.rope.depends_on_length)
        and (not isinstance(ffn, Mixture) or router.serves(ffn.router))
        and all(each.activation in activations.NUMBERS for each in inner)
        and (shared is None or (shared.gated and shared.intermediate_size % 16 == 0))  # whole strips of gate
    )


class _Recorder:
    """Makes CUDA graphs of launches, all in one pool of memory: they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def record(self, launch: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                launch()
            finally:
                graph.capture_end()
        current.wait_stream(self._stream)
        return graph


@dataclass(slots=True)
class _Stage:
    """Launches without a look from the host: recorded when they have run once, and played again from then on."""

    launch: Callable[[], None]
    ran: bool = False
    graph: torch.cuda.CUDAGraph | None = None

    def run(self, recorder: _Recorder | None) -> None:
        if self.graph is None and self.ran and recorder is not None:
            self.graph = recorder.record(self.launch)
        if self.graph is not None:
            self.graph.replay()
        else:
            self.launch()  # kernels are compiled, which no graph can hold
            self.ran = True


@dataclass(slots=True)
class _Hop:
    """A layer whose experts are not all on the device: what the host is asked, and what it gives."""

    layer: int
    top_k: int
    outputs: Tensor  # float32 [T * A, D]
    normed: Normed | None = None
    routing: Routing | None = None


@dataclass(slots=True)
class _Program:
    """A step of T tokens, as many of each of some texts: its stages, the hops between them, and its buffers."""

    ids: Tensor  # [T]
    x: Tensor  # [T, D]
    places: dict[int | None, list[Tensor]]  # by window, of each text: int32 [2], see `Text`
    stages: list[_Stage] = field(default_factory=list)
    hops: list[_Hop] = field(default_factory=list)
    routings: dict[int, Routing] = field(default_factory=dict)
    chosen: Tensor | None = None  # experts of resident layers, one layer after another
    states: Tensor | None = None  # normed, [T, D]
    logits: Tensor | None = None  # float32 [T, V]


class DeviceStep:
    """Takes up to `max_tokens` tokens through all layers, from ids to normed states and logits."""

    max_tokens = MAX_TOKENS

    def __init__(
        self, spec: ModelSpec, dense: DenseWeights, rotary: Sequence[RotaryEmbedding], experts: ExpertStore
    ) -> None:
        self._spec, self._dense, self._experts = spec, dense, experts
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
        self._programs: WeakKeyDictionary[Cache, dict[tuple[int, ...], _Program]] = WeakKeyDictionary()
        self._last: _Program | None = None
        self._recorder = _Recorder(dense.device) if dense.device.type == "cuda" else None

    def forward(self, ids: Tensor, caches: Sequence[Cache], observer: RoutingObserver | None = None) -> Tensor:
        """Normed states [T, D] of ids [T], as many of each text, appended to the texts' caches.

        They are those of the next call from then on.
        """
        program = self._program(len(ids), caches)
        self._begin(program, ids, caches)
        for number, stage in enumerate(program.stages):
            stage.run(self._recorder)
            if number < len(program.hops):
                self._ask(program.hops[number])
        self._count(program, observer)
        self._last = program
        assert program.states is not None
        return program.states

    def logits(self, states: Tensor) -> Tensor | None:
        """The scores [t, V] after the last of the last call's states, [t, D]; None of any others."""
        last = self._last
        if last is None or last.states is None or last.logits is None:
            return None
        mine = last.states[-len(states) :]
        return last.logits[-len(states) :] if mine.data_ptr() == states.data_ptr() else None

    def _program(self, tokens: int, caches: Sequence[Cache]) -> _Program:
        """That of these texts, made when they first come; it lasts as long as the first one's cache."""
        known = self._programs.setdefault(caches[0], {})
        key = tokens, *map(id, caches[1:])
        if key not in known:
            known[key] = self._compose(tokens, caches)
        return known[key]

    def _compose(self, tokens: int, caches: Sequence[Cache]) -> _Program:
        device, spec = self._dense.device, self._spec
        windows = {layer.attention.window for layer in spec.layers}
        program = _Program(
            torch.zeros(tokens, dtype=torch.int64, device=device),
            torch.empty(tokens, spec.hidden_size, dtype=self._dense.dtype, device=device),
            {each: [torch.zeros(2, dtype=torch.int32, device=device) for _ in caches] for each in windows},
        )
        buffers = [[cache.layers[index].buffers for cache in caches] for index in range(len(spec.layers))]
        first, begin = 0, None
        for index, half in enumerate(self._feed_forward):
            if not half.resident:
                assert half.mixture is not None
                top_k = half.mixture.router.top_k
                outputs = torch.empty(tokens * top_k, spec.hidden_size, dtype=torch.float32, device=device)
                hop = _Hop(index, top_k, outputs)
                program.stages.append(_Stage(self._launcher(program, buffers, range(first, index + 1), begin, hop)))
                program.hops.append(hop)
                first, begin = index + 1, hop
        rest = range(first, len(spec.layers))
        program.stages.append(_Stage(self._launcher(program, buffers, rest, begin, None)))
        return program

    def _launcher(
        self,
        program: _Program,
        buffers: Sequence[Sequence[Sequence[Tensor]]],
        layers: range,
        begin: _Hop | None,
        end: _Hop | None,
    ) -> Callable[[], None]:
        """What takes the states through some layers, from what a hop gave, or from the ids, to what another asks."""

        def launch() -> None:
            branch: Branch | None = None
            if begin is None:
                if self._dense.has_table:
                    program.x.copy_(self._embed(program.ids))
            else:
                assert begin.normed is not None
                branch = self._feed_forward[begin.layer].branch(begin.normed, begin.routing, begin.outputs)
            before = layers.start - 1  # whose feed-forward the branch is
            for index in layers:
                normed = self._add(program.x, branch, before, "ffn", self._dense.layers[index]["attn_norm"])
                places = program.places[self._spec.layers[index].attention.window]
                attended = self._attention[index](normed, list(zip(buffers[index], places, strict=True)))
                normed = self._add(program.x, Branch(attended), index, "attn", self._dense.layers[index]["ffn_norm"])
                half, routing = self._feed_forward[index], None
                if half.mixture is not None:
                    routing = program.routings[index] = half.route(normed)
                if end is not None and index == end.layer:
                    end.normed, end.routing = normed, routing
                    return
                branch, before = half.branch(normed, routing), index
            final = self._add(program.x, branch, before, "ffn", self._dense.outside["final_norm"])
            program.states = final.states
            logits = self._lm_head(final, torch.float32 if self._dense.dtype is torch.float32 else None).float()
            multiplier = self._spec.logit_multiplier
            program.logits = logits if multiplier == 1 else logits * multiplier
            if resident := self._resident(program):
                program.chosen = torch.cat([each.topk_ids.flatten() for each in resident])

        return launch

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

    def _begin(self, program: _Program, ids: Tensor, caches: Sequence[Cache]) -> None:
        """Say which tokens come and where they go, and make room for them in the caches."""
        program.ids.copy_(ids)
        each, told = len(ids) // len(caches), set()
        for index, layer in enumerate(self._spec.layers):
            for number, cache in enumerate(cache.layers[index] for cache in caches):
                start = cache.length
                cache.extend(each)
                key = layer.attention.window, number
                if key not in told:
                    told.add(key)
                    place = torch.tensor([start, cache.first], dtype=torch.int32)
                    program.places[layer.attention.window][number].copy_(place)
        if not self._dense.has_table:
            program.x.copy_(self._embed(ids))

    def _ask(self, hop: _Hop) -> None:
        """Let the store's experts compute what the router chose, each where it is."""
        assert hop.normed is not None and hop.routing is not None
        mixture = self._feed_forward[hop.layer].mixture
        assert mixture is not None
        chosen = hop.routing.topk_ids.cpu()
        each_output(self._experts, hop.layer, mixture.expert.activation, hop.normed.states, chosen, hop.outputs)

    def _resident(self, program: _Program) -> list[Routing]:
        """Of mixtures that never left the device."""
        asked = {hop.layer for hop in program.hops}
        return [routing for layer, routing in program.routings.items() if layer not in asked]

    def _count(self, program: _Program, observer: RoutingObserver | None) -> None:
        """Tell the store how many of its resident experts were used, and the observer which."""
        if program.chosen is not None:
            chosen = program.chosen.tolist()
            for routing in self._resident(program):
                count = routing.topk_ids.numel()
                self._count_hits(len(set(chosen[:count])))
                del chosen[:count]
        if observer is not None:
            for layer, routing in program.routings.items():
                observer.record(layer, Routing(*(each.clone() for each in routing)))

    def _count_hits(self, experts: int) -> None:
        statistics = self._experts.statistics
        statistics.hits += experts
        if isinstance(statistics, DeviceStatistics):
            statistics.device_hits += experts
