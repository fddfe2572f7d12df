"""The decoder: token ids through every block to logits. It asks a store for experts and knows nothing of files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli import settings
from moecli.engine.attention import Scratch
from moecli.engine.block import Block, RoutingObserver
from moecli.engine.cache import Cache, new_cache
from moecli.engine.decode_step import DecodeStep, NativeLayer
from moecli.engine.encoder import Encoder
from moecli.engine.finite import is_finite, not_finite
from moecli.engine.indexer import choices_of
from moecli.engine.layers import RelativeBias, RotaryEmbedding, normalise, soft_cap
from moecli.engine.profile import Profile, ProfiledBlock, ProfiledLayer
from moecli.engine.team import Team
from moecli.engine.weights import DenseWeights
from moecli.experts.store import ExpertStore
from moecli.formats import PLAIN
from moecli.kernels.blocking import BLOCK, BUCKET
from moecli.kernels.choice import forced, on_gpu, serves
from moecli.kernels.library import library
from moecli.kernels.linear import linear
from moecli.kernels.prompt_attention import longest_absorbed
from moecli.model.spec import MLA, ModelSpec, Rope
from moecli.store.progress import Progress, silent

if TYPE_CHECKING:
    from moecli.engine.device_step import DeviceStep


Look = Callable[[int, Tensor], None]  # sees the normed states [t, D] of tokens from a place in what is fed on


class Decoder:
    """A model ready to run: dense weights in memory, experts behind a store."""

    def __init__(
        self, spec: ModelSpec, dense: DenseWeights, experts: ExpertStore, positions: int, native: bool = True
    ) -> None:
        """`positions`: the longest text. Unless `native`, decode steps go through the blocks as prompts do."""
        self.spec = spec = spec.within(positions)
        self.experts = experts
        self._outside, self._embedding = dense.outside, dense.embed
        self.dtype, self.device = dense.dtype, dense.device
        self._rotary: dict[Rope, RotaryEmbedding] = {
            layer.attention.rope: RotaryEmbedding(layer.attention.rope, positions, self.dtype, self.device)
            for layer in spec.blocks
        }
        scratch = Scratch()
        rotary_of_layer = [self._rotary[layer.attention.rope] for layer in spec.blocks]
        layers = list(zip(range(len(spec.blocks)), dense.layers, rotary_of_layer, strict=True))
        self._unpacks = experts.dtype not in PLAIN and serves("torch", experts.dtype, dense.device)
        self.profile = Profile(self.device, experts.statistics) if settings.profile() else None
        new_block: Callable[..., Block] = Block
        new_step: Callable[..., NativeLayer] = NativeLayer
        if self.profile:
            new_block = partial(ProfiledBlock, profile=self.profile)
            new_step = partial(ProfiledLayer, profile=self.profile)
        biases = _relative_biases(spec, dense, positions)
        blocks: list[Block] = [
            new_block(spec, *layer, scratch, experts, bias) for layer, bias in zip(layers, biases, strict=True)
        ]
        depth = len(spec.encoder)
        self.encoder = Encoder(spec, dense, blocks[:depth]) if depth else None
        self._blocks = blocks[depth:]
        self.team: Team | None = None
        self.decode_step: DecodeStep | None = None
        if native and self.encoder is None:
            pairs = zip(layers, self._blocks, strict=True)
            steps = [new_step(spec, *layer, experts, block) for layer, block in pairs]
            if any(step.attention or step.moe for step in steps):
                self.decode_step = DecodeStep(steps, single_call=self.profile is None)
            if self.profile:
                self.profile.apart = all(step.resident for step in steps)
        self._device_step = None if self.profile or not native else _device_step(spec, dense, rotary_of_layer, experts)

    def release(self) -> None:
        """Let go of every weight, whoever still holds this: it computes no more."""
        vars(self).clear()

    @property
    def is_released(self) -> bool:
        """Whether it has let go of its weights."""
        return not vars(self)

    @property
    def can_draft(self) -> bool:
        """Whether several tokens are a decode step, and each the same as alone: no rotation depends on the length."""
        return self.decode_step is not None and self.decode_step.max_tokens > 1 and not self.rotates_by_length

    @property
    def rotates_by_length(self) -> bool:
        """Whether what a token becomes depends on how long the text is that it is read with."""
        return any(rope.depends_on_length for rope in self._rotary)

    @property
    def reads_alike(self) -> bool:
        """Whether no bit of a prompt's token depends on which others are read with it: native kernels compute."""
        return self.device.type == "cpu" and forced() in (None, "native") and library() is not None

    @property
    def absorbed_up_to(self) -> int:
        """Tokens of a prompt up to which latents may be attended to as they are; longer ones expand them; 0: no matter.

        No bit of a token depends on how long its prompt is, beyond that.
        """
        latent = [each.attention for each in self.spec.layers if isinstance(each.attention, MLA)]
        return max((longest_absorbed(each.kv_rank, each.nope_dim, each.value_dim) for each in latent), default=0)

    def new_cache(self, capacity: int, chunk: int) -> Cache:
        """An empty cache for one text of at most `capacity` tokens, fed at most `chunk` at a time."""
        return Cache(self.spec, capacity, chunk, self.dtype, self.device)

    def read(
        self, ids: Tensor, cache: Cache, observer: RoutingObserver | None = None, watch: Progress = silent
    ) -> float | None:
        """Let the encoder read a text, ids [T], which coming tokens attend to; `cache` is emptied of all others.

        Returns the share of its choices that full experts dropped; None where they have no limit.
        """
        assert self.encoder is not None, "a decoder alone reads its prompt as its own text"
        with torch.inference_mode():
            self._adjust_threads()
            states = self.encoder.forward(ids.to(self.device), observer and observer.encoder, watch)
            cache.rewind(0)
            for block, layer in zip(self._blocks, cache.layers, strict=True):
                block.keep(states, layer)
        return self.encoder.dropped

    def forward(
        self,
        ids: Tensor,
        cache: Cache,
        observer: RoutingObserver | None = None,
        last_only: bool = False,
        watch: Progress = silent,
        prompt: int | None = None,
        look: Look | None = None,
    ) -> Tensor:
        """Feed `ids` [T] after what `cache` holds; returns the normed states [t, D] of the last BLOCK of tokens.

        A few tokens are one decode step. Of more, a block at a time passes layer after layer, so that each expert is
        asked for once a block; what a token becomes depends neither on blocks nor on the cache's chunks.
        `last_only`: only the last token's [1, D]; the last layer's feed-forward is left out for the others, unless an
        observer wants to see their routing. `watch` is told of tokens. `prompt`: how long the prompt is of which these
        are a part; None if they are all of it. `look` sees the normed states of every token.
        """
        with torch.inference_mode():
            for rotary in self._rotary.values():
                rotary.prepare(cache.length + len(ids))
            if self._device_step and len(ids) <= self._device_step.max_tokens:
                if observer is not None:
                    observer.tokens(ids)
                self._adjust_threads()
                states = self._device_step.forward(ids, [cache], observer)
                watch(len(ids), len(ids))
                if look is not None:
                    look(0, states)
                return states[-1:] if last_only else states
            ids = ids.to(self.device)
            if self.decode_step and len(ids) <= self.decode_step.max_tokens:
                states = self._step(ids, cache, observer)
                if look is not None:
                    look(0, self.normed(states))
            else:
                for start, part in zip(range(0, len(ids), BLOCK), ids.split(BLOCK), strict=True):
                    last = start + len(part) == len(ids)
                    all_wanted = observer is not None or look is not None or not last_only
                    count = partial(_count, watch, start, len(ids))
                    wanted = len(part) if all_wanted else int(last)
                    states = self._block(part, cache, prompt or len(ids), observer, wanted, count)
                    if look is not None:
                        look(start, self.normed(states))
            watch(len(ids), len(ids))
            return self.normed(states[-1:] if last_only else states)

    def forward_texts(self, ids: Tensor, caches: Sequence[Cache]) -> Tensor:
        """One more token of each of several texts, ids [N]: their normed states [N, D], to the bit as for each alone.

        Weights are read once for up to `decode_step.max_tokens` texts, experts that may move once for all.
        """
        if self._device_step:
            some = self._device_step.max_tokens
            parts = zip(ids.split(some), range(0, len(ids), some), strict=True)
            with torch.inference_mode():
                self._adjust_threads()
                return torch.cat(
                    [self._device_step.forward(part, caches[start : start + some]).clone() for part, start in parts]
                )
        if not self.decode_step or self.decode_step.max_tokens == 1:
            return torch.cat([self.forward(token, cache) for token, cache in zip(ids.split(1), caches, strict=True)])
        with torch.inference_mode():
            for rotary in self._rotary.values():
                rotary.prepare(max(cache.length for cache in caches) + 1)
            self._adjust_threads()
            states = self.decode_step.forward_texts(
                self._embed(ids.to(self.device)), [cache.layers for cache in caches]
            )
            return self.normed(states)

    def next_logits(self, ids: Tensor, caches: Sequence[Cache]) -> Tensor:
        """The scores after one more token of each of several texts, float32 [N, V] on the CPU, as for each alone."""
        if self.can_draft:
            return self.logits(self.forward_texts(ids, caches)).cpu()
        alone = (self.forward(token, cache) for token, cache in zip(ids.split(1), caches, strict=True))
        return torch.cat([self.logits(states).cpu() for states in alone])

    def read_texts(self, texts: Sequence[Tensor], caches: Sequence[Cache], watch: Progress = silent) -> Tensor:
        """Read several prompts [T] into empty caches, asking for each expert once per layer: the normed states [N, D]
        after each. Where it `reads_alike`, and none is so short as to be a decode step, they are those of `forward`.

        `watch` is told of layers.
        """
        with torch.inference_mode():
            for rotary in self._rotary.values():
                rotary.prepare(max(map(len, texts)))
            sizes = [len(text) for text in texts]
            x = self._embed(torch.cat(list(texts)).to(self.device))
            last = torch.tensor(sizes).cumsum(0) - 1
            for number, block in enumerate(self._blocks):
                kept = block.keep_input(x)
                for text, cache in zip(x.split(sizes), caches, strict=True):
                    for part in text.split(cache.chunk):
                        self._adjust_threads()
                        part.copy_(block.attend(part, cache.layers[number], len(text)))
                if number == len(self._blocks) - 1:
                    x, kept = x[last], None if kept is None else kept[last]
                block.feed_forward(x, None, kept)
                watch(number + 1, len(self._blocks))
            return normalise(x, self._outside["final_norm"], self.spec.norm, self.spec.norm_eps)

    def first_not_finite(self, ids: Tensor, read: Tensor | None = None) -> str:
        """Where the states of a text [T] are first infinite or no numbers, in words: for an error that is certain.

        `read` [N]: what the encoder has read before.
        """
        with torch.inference_mode():
            longest = max(len(ids), 0 if read is None else len(read))
            whole = self.new_cache(longest, longest)
            x, caches = self._embed(ids.to(self.device)), whole.layers
            if not is_finite(x):
                return "in the embeddings"
            if self.encoder is not None and read is not None:
                if not is_finite(self.encoder.forward(read.to(self.device))):
                    return "in the encoder"
                self.read(read, whole)
            for index, (block, cache) in enumerate(zip(self._blocks, caches, strict=True), len(self.spec.encoder)):
                kept = block.keep_input(x)
                x = block.attend(x, cache, len(ids))
                if not is_finite(x):
                    return f"in the attention of layer {index}"
                block.feed_forward(x, None, kept)
                if not is_finite(x):
                    return f"in the feed-forward of layer {index}"
        return "in the logits"

    def layerwise_prefill(
        self, texts: Sequence[Tensor], chunk: int, observer: RoutingObserver, watch: Progress = silent
    ) -> None:
        """Route every token of several texts [T], each from its own start, asking for each expert once per layer.

        `watch` is told halves of layers done, of how many.
        """
        halves = 2 * len(self._blocks)
        for done, _ in enumerate(self.layerwise(texts, chunk, observer), 1):
            watch(done, halves)

    def layerwise(
        self, texts: Sequence[Tensor], chunk: int, observer: RoutingObserver | None = None
    ) -> Iterator[Tensor]:
        """Let several texts [t], each from its own start, pass layer by layer, asking for each expert once per layer.

        Yields the hidden states of all of them [T, D] after each half of a layer; the next half changes them in place.
        Only the routed experts see more than `chunk` tokens at a time.
        """
        bucket = min(BUCKET, chunk)
        lengths = [len(text) for text in texts]
        longest = -(-max(lengths) // bucket) * bucket
        with torch.inference_mode():
            x = torch.cat([self._embed(text.to(self.device)) for text in texts])
        choices_of_layers = choices_of(self.spec.layers)
        for block, layer, choices in zip(self._blocks, self.spec.layers, choices_of_layers, strict=True):
            with torch.inference_mode():
                cache = new_cache(layer, choices, longest, chunk, self.dtype, self.device)
                kept = block.keep_input(x)
                if observer is not None:
                    block.foresee(x, observer)
                for text in x.split(lengths):
                    cache.clear()
                    self._rotary[layer.attention.rope].prepare(len(text))
                    for part in text.split(chunk):
                        self._adjust_threads()
                        # As many rows for many lengths: the library compiles and keeps a product for each shape.
                        padded = F.pad(part, (0, 0, 0, -len(part) % bucket))
                        part.copy_(block.attend(padded, cache, len(text))[: len(part)])
                del cache
            yield x
            with torch.inference_mode():
                block.feed_forward(x, observer, kept)
            yield x
        if not is_finite(x):
            raise not_finite("after the last layer", self.dtype)

    def _embed(self, ids: Tensor) -> Tensor:
        x = self._embedding(ids)  # [t, D]
        return x if self.spec.embedding_multiplier == 1 else x * self.spec.embedding_multiplier

    def _step(self, ids: Tensor, cache: Cache, observer: RoutingObserver | None) -> Tensor:
        assert self.decode_step
        if observer is not None:
            observer.tokens(ids)
        self._adjust_threads()
        return self.decode_step.forward(self._embed(ids), [cache.layers], observer)

    def _block(
        self,
        ids: Tensor,
        cache: Cache,
        prompt: int,
        observer: RoutingObserver | None,
        wanted: int,
        count: Callable[[float], None],
    ) -> Tensor:
        """The states after the last layer of the last `wanted` tokens, [wanted, D]; `count` is told of tokens done."""
        if observer is not None:
            observer.tokens(ids)
        x = self._embed(ids)
        for number, (block, layer_cache) in enumerate(zip(self._blocks, cache.layers, strict=True)):
            kept = block.keep_input(x)
            if observer is not None:
                block.foresee(x, observer)
            for part in x.split(cache.chunk):
                self._adjust_threads()
                part.copy_(block.attend(part, layer_cache, prompt))
            count(len(ids) * (2 * number + 1) / (2 * len(self._blocks)))
            if number == len(self._blocks) - 1:
                x = x[len(ids) - wanted :]
            if len(x):
                self._adjust_threads()
                block.feed_forward(x, observer, kept)
            count(len(ids) * (number + 1) / len(self._blocks))
            if self._unpacks and len(ids) > 1:
                settings.return_freed_memory()
        return x

    def _adjust_threads(self) -> None:
        if self.team:
            self.team.adjust()

    def normed(self, x: Tensor) -> Tensor:
        """Hidden states after the last layer [t, D] as `logits` takes them."""
        with torch.inference_mode():
            w, spec = self._outside, self.spec
            return normalise(x, w["final_norm"], spec.norm, spec.norm_eps, w.get("final_norm_bias"))

    def logits(self, states: Tensor) -> Tensor:
        """The scores of every next token, float32 [t, V], after normed states [t, D]."""
        with torch.inference_mode():
            if self._device_step and (made := self._device_step.logits(states)) is not None:
                return made
            head = self._outside.matrix("lm_head" if "lm_head" in self._outside else "embedding")
            logits = linear(states, head, self._outside.get("lm_head_bias")).float()
            if self.spec.logit_multiplier != 1:
                logits = logits * self.spec.logit_multiplier
            return logits if self.spec.logit_softcap is None else soft_cap(logits, self.spec.logit_softcap)


def _device_step(
    spec: ModelSpec, dense: DenseWeights, rotary: Sequence[RotaryEmbedding], experts: ExpertStore
) -> DeviceStep | None:
    """Where Triton's kernels serve; Triton is imported there alone."""
    if not on_gpu(dense.device):
        return None
    from moecli.engine.device_step import DeviceStep, serves

    return DeviceStep(spec, dense, rotary, experts) if serves(spec, dense, experts) else None


def _relative_biases(spec: ModelSpec, dense: DenseWeights, positions: int) -> list[RelativeBias | None]:
    """Of each block that of its stack."""
    if spec.relative_positions is None:
        return [None] * len(spec.blocks)
    biases: list[RelativeBias | None] = []
    for role, layers in (("encoder_positions", spec.encoder), ("positions", spec.layers)):
        if layers:
            bias = RelativeBias(dense.outside[role], spec.relative_positions, positions, layers is spec.encoder)
            biases += [bias] * len(layers)
    return biases


def _count(watch: Progress, before: int, total: int, done: float) -> None:
    """Tokens that half the layers have seen count half."""
    watch(before + int(done), total)
