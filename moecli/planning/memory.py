"""What a model takes, byte by byte: weights, cache, buffers and process. The only arithmetic of memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from moecli.formats import bytes_for
from moecli.formats.blocks import block_rows
from moecli.formats.words import formats_of
from moecli.kernels import blocking, built
from moecli.kernels.blocking import BLOCK, BUCKET, CHUNK, LOGITS, SCORES
from moecli.model.params import kv_numbers_per_token
from moecli.model.spec import (
    MLA,
    Attention,
    FeedForward,
    Indexer,
    Layer,
    Mixture,
    ModelSpec,
    Part,
    Recurrent,
    RecurrentKind,
    Scoring,
    alike,
)
from moecli.model.tensors import MIXER_FLOAT32, Tensor, counted_tensors, expert_shapes
from moecli.planning import states
from moecli.planning.terms import Amount, Term, add, count, larger, multiply, named, under, within
from moecli.store.expert_record import STAGING, check_dense, dense_dtype, mixture_record, staging_size

# Measured with benchmarks/memory.py (torch 2.13, oneDNN): what no line of ours allocates.
PROCESS = 272 * 2**20  # interpreter, torch and tokenizer before any weight, and the first product
FIRST_PRODUCT = 8 * 2**20  # of it, which nobody asks the library for beside native kernels
LIBRARY = 18 * 2**20  # compiled products and freed blocks that the allocator keeps, after a first chunk
LIBRARY_CHUNK = 3 * 2**20  # the same for each further chunk
LIBRARY_BESIDE_NATIVE = 3 * 2**20  # as LIBRARY, where attention is native: few shapes are left to compile
LIBRARY_CHUNK_BESIDE_NATIVE = 2**19
UNPACKED = {"int8": 64, "nf4": 32}  # bytes per weight of a block that torch unpacks, and of the holes that leaves
PACKED_KEY = 28  # bytes per number of keys and values while the library multiplies with them
_DEFAULT_CONTEXT = 8192
# Measured with benchmarks/gpu.py on an H100 (torch 2.11, CUDA 13): what the plan does not count.
DEVICE_CONTEXT = 800 * 2**20  # of the device: context, kernels and products of libraries, rounding of the allocator
DEVICE_PROCESS = 1070 * 2**20  # of RAM, beside PROCESS: CUDA and its libraries, which unpack their kernels there


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Experts that are made of a checkpoint's own files as they are read, not those of a packed store."""

    read_bytes: int  # that one of the largest takes from disk, in whole pages
    buffers: int  # while it is decoded and packed, of all threads


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What one model takes in one format, for `batch` texts of `context` tokens."""

    dtype: str
    context: int
    batch: int
    dense: Term
    experts: Term
    kv: Term
    activations: Term
    device_activations: int  # the same on a device, where torch attends
    process: Term
    block: int  # prompt tokens that pass a layer together: each expert is read at most once for them
    chunk: int  # of them, that attend at once
    expert_count: int  # over all layers
    bytes_per_expert: int  # of the largest
    slot_bytes: int  # the same in whole pages, as a slot holds it
    staging: int  # buffers that experts pass through when some are read from disk
    read_bytes: int  # from disk for one of the largest experts
    table: int  # bytes of the dense weights that a row per token is read of: the input table, unless it is the head

    @property
    def terms(self) -> tuple[Term, ...]:
        return self.dense, self.experts, self.kv, self.activations, self.process

    @property
    def weights(self) -> int:
        return self.dense.bytes + self.experts.bytes

    @property
    def total(self) -> int:
        """Weights, cache and buffers, without the process."""
        return self.weights + self.kv.bytes + self.activations.bytes

    @property
    def peak(self) -> int:
        """The most that the process has resident when all of it is in RAM."""
        return self.total + self.process.bytes


def estimate_memory(
    spec: ModelSpec, dtype: str, context: int, batch: int = 1, chunk: int = CHUNK, block: int | None = None,
    scored: int = 0, unpacked: Unpacked | None = None,
) -> MemoryEstimate:  # fmt: skip
    """Every byte that a run allocates; `dtype` is the format of the large matrices.

    `scored`: tokens of a text whose logits are there at once. `unpacked`: how its experts are read from disk, if they
    have to be; None: from a packed store.
    """
    check_dense(spec, dtype)
    block = _at_once(spec, context, BLOCK) if block is None else block
    mixtures = _mixtures(spec)
    records = [mixture_record(spec, mixture, dtype) for mixture in mixtures]
    sizes = [expert_bytes(spec, mixture, dtype) for mixture in mixtures]
    return MemoryEstimate(
        dtype,
        context,
        batch,
        dense=_dense(spec, dtype),
        experts=_experts(mixtures, sizes),
        kv=_kv(spec, dtype, context, batch, chunk),
        activations=_activations(spec, dtype, context, batch, chunk, block, scored, built.expected()),
        device_activations=_activations(
            spec, dtype, context, batch, chunk, block, scored, native=False, waiting=True
        ).bytes,
        process=_process(),
        block=block,
        chunk=_at_once(spec, context, chunk),
        expert_count=sum(layers * mixture.router.experts for mixture, layers in mixtures.items()),
        bytes_per_expert=max(sizes, default=0),
        slot_bytes=max((record.stride for record in records), default=0),
        staging=STAGING * max(map(staging_size, records), default=0) + (unpacked.buffers if unpacked else 0),
        read_bytes=unpacked.read_bytes if unpacked else max(sizes, default=0),
        table=0
        if spec.tied_embeddings
        else sum(n * tensor_bytes(t, dtype) for t, n in counted_tensors(spec) if t.part is Part.EMBEDDING),
    )


def layerwise_memory(
    spec: ModelSpec, dtype: str, longest: int, tokens: int, scored: int = 0, unpacked: Unpacked | None = None
) -> MemoryEstimate:
    """So many tokens of texts of up to `longest` pass a layer together; one layer's cache at a time holds one text."""
    memory = estimate_memory(spec, dtype, longest, block=tokens, scored=scored, unpacked=unpacked)
    largest = max(_kv(replace(spec, layers=(each,)), dtype, longest, 1, CHUNK).bytes for each, _ in alike(spec.layers))
    kv = Amount(largest, f"1 layer of {memory.kv.formula}")
    return replace(memory, kv=replace(memory.kv, amount=kv))


def scored_at_once(spec: ModelSpec) -> int:
    """Tokens of a text that is scored whose logits are there at once."""
    return max(1, min(CHUNK, LOGITS // spec.vocab_size))


def default_context(spec: ModelSpec) -> int:
    """Tokens of a context nobody asked for: the model's own, where that is not very long."""
    return min(spec.context_length, _DEFAULT_CONTEXT)


def cache_rows(attention: Attention, capacity: int, chunk: int = CHUNK) -> int:
    """Positions that one layer's cache holds. A window keeps itself plus room to append without moving often."""
    if attention.window is None:
        return capacity
    return min(capacity, attention.window + max(attention.window, min(chunk, capacity)))


def kv_bytes_per_token(spec: ModelSpec) -> int:
    """What one more token adds to a 2-byte cache; the windows' fixed part is not in it."""
    return 2 * kv_numbers_per_token(spec)


def read_bytes_per_token(spec: ModelSpec, dtype: str) -> int:
    """Weights that one decode step reads: the active experts and all dense weights but the input table."""
    spec = replace(spec, encoder=())  # which is at rest then
    active = sum(n * m.router.top_k * expert_bytes(spec, m, dtype) for m, n in _mixtures(spec).items())
    return active + dense_read_bytes(spec, dtype)


def dense_read_bytes(spec: ModelSpec, dtype: str) -> int:
    """The dense part of it. A tied table is read whole, as the head; of routed attention only what is chosen."""
    read = routed = 0
    spec = replace(spec, encoder=())
    for tensor, times in counted_tensors(spec):
        if tensor.part is Part.ROUTED_EXPERTS:
            routed += times * tensor_bytes(tensor, dtype)
        elif spec.tied_embeddings or tensor.part is not Part.EMBEDDING:
            read += times * tensor_bytes(tensor, dtype)
    if routed:
        router = next(iter(_mixtures(spec))).router
        read += routed * router.top_k // router.experts
    return read


def tensor_bytes(tensor: Tensor, dtype: str) -> int:
    """One dense tensor as stored; sensitive ones in 16 bits at least."""
    return bytes_for(dense_dtype(tensor, dtype), tensor.shape)


def expert_bytes(spec: ModelSpec, mixture: Mixture, dtype: str) -> int:
    """The matrices of one routed expert of a mixture in this format."""
    shapes = expert_shapes(mixture.latent_width or spec.hidden_size, mixture.expert)
    return sum(bytes_for(formats_of(dtype).experts, shape) for shape in shapes.values())


def _mixtures(spec: ModelSpec) -> Counter[Mixture]:
    """Each kind, in the order of the layers, and in how many layers it is."""
    found: Counter[Mixture] = Counter()
    for layer, times in alike(spec.blocks):
        if isinstance(layer.ffn, Mixture):
            found[layer.ffn] += times
    return found


def _experts(mixtures: Counter[Mixture], sizes: Sequence[int]) -> Term:
    same: Counter[tuple[int, int]] = Counter()
    for (mixture, layers), size in zip(mixtures.items(), sizes, strict=True):
        same[mixture.router.experts, size] += layers
    kinds = (
        multiply(count(layers, "layers"), count(experts, "experts"), count(size))
        for (experts, size), layers in same.items()
    )
    return Term("routed experts", add(kinds), "layers, experts, expert width, hidden size")


def _dense(spec: ModelSpec, dtype: str) -> Term:
    parts: Counter[str] = Counter()
    for tensor, times in counted_tensors(spec):
        parts[tensor.part.value] += times * tensor_bytes(tensor, dtype)
    amount = add(named(name, size) for name, size in parts.items())
    return Term("dense weights", amount, "every width but the routed experts'")


def _at_once(spec: ModelSpec, context: int, chunk: int) -> int:
    """Prompt tokens per pass: an encoder takes all."""
    return context if spec.encoder else min(chunk, context)


def _number_bytes(dtype: str) -> int:
    return 4 if dtype == "fp32" else 2


def _kv(spec: ModelSpec, dtype: str, context: int, batch: int, chunk: int) -> Term:
    """Every layer's rows as the engine allocates them, and the fixed states of layers without attention."""
    rows: Counter[tuple[int, int]] = Counter()
    kept = 0
    for layer, times in alike(spec.within(context).layers):
        rows[cache_rows(layer.attention, context, chunk), layer.attention.cache_width] += times
        rows[context, layer.index_width + (layer.cross.cache_width if layer.cross else 0)] += times
        kept += times * states.numbers(layer.recurrent) if layer.recurrent else 0
    numbers = [
        multiply(count(layers, "layers"), count(each, "rows"), count(width, "numbers"))
        for (each, width), layers in rows.items()
        if width
    ]
    parts = [multiply(within(add(numbers)), count(_number_bytes(dtype), "bytes"))] if numbers else []
    parts += [multiply(count(kept, "numbers of states and snapshots"), count(4, "bytes"))] if kept else []
    whole = within(add(parts)) if len(parts) > 1 else add(parts)
    amount = multiply(whole, named("batch", batch))
    return Term("KV cache", amount, "layers, key/value heads or latent rank, head_dim, sliding_window, --ctx, --batch")


def _activations(
    spec: ModelSpec,
    dtype: str,
    context: int,
    batch: int,
    chunk: int,
    block: int,
    scored: int,
    native: bool,
    waiting: bool = False,
) -> Term:
    """The largest buffers alive at once while a block of the prompt passes a layer, and the rotary tables.

    `waiting`: what experts make of the block may have to wait for its turn in the sum.
    """
    size = _number_bytes(dtype)
    tokens = _at_once(spec, context, chunk)
    chunks = max(context, block) / CHUNK
    kinds = [layer for layer, _ in alike(spec.within(context).blocks)]
    attends_native = native and not spec.encoder  # no kernel has relative positions
    tables = sum(2 * context * rope.dims * size for rope in {layer.attention.rope for layer in kinds})
    routers = sum((4 - size) * times * each.count for each, times in counted_tensors(spec) if each.role == "router")
    indexers = sum(
        (4 - size) * times * each.count for each, times in counted_tensors(spec) if each.role == "index_weights"
    )
    beside = LIBRARY_BESIDE_NATIVE, LIBRARY_CHUNK_BESIDE_NATIVE
    first, further = beside if attends_native else (LIBRARY, LIBRARY_CHUNK)
    library = int(min(1, chunks) * first + min(64, chunks) * further)
    experts = formats_of(dtype).experts
    unpacked = UNPACKED[experts] * _largest_block(spec, dtype) if experts in UNPACKED and not native else 0
    small = sum((4 - size) * times * each.count for each, times in counted_tensors(spec) if each.role in MIXER_FLOAT32)
    attend = _native_attention if attends_native else _attention
    mixers = [
        attend(layer.attention, tokens, context, size)
        + _gate(layer, tokens, size)
        + _indexer(layer, tokens, context, size)
        for layer in kinds
        if layer.attention.cache_width
    ]
    mixers += [_recurrent(layer.recurrent, tokens, size) for layer in kinds if layer.recurrent]
    chosen = max((8 * block * i.top_k for i in map(_indexer_of, kinds) if i and i.shared), default=0)
    copies = 2 if any(layer.ffn_reads_input for layer in kinds) else 1
    at_once = (
        named("residual stream", (copies * block + 3 * tokens) * spec.hidden_size * size),
        named("attention", max(mixers, default=0)),
        larger(
            _feed_forwards(spec, dtype, block, size, waiting),
            named("logits", max(2 * batch, 4 * scored) * spec.vocab_size * 4),
        ),
    )
    amount = add(
        (
            named("rotary tables", tables),
            named("routers in float32", routers),
            *([named("indexers in float32", indexers)] if indexers else []),
            *([named("choices that layers share", chosen)] if chosen else []),
            *([named("mixers in float32", small)] if small else []),
            named("matrix library", library),
            *([named("encoder", _encoder(spec, context, size))] if spec.encoder else []),
            *([named("unpacked rows", unpacked)] if unpacked else []),
            under(f"for {block} prompt tokens, {tokens} at once", add(at_once, ", ")),
        )
    )
    return Term("activations", amount, "hidden size, heads, expert width, vocab_size")


def _encoder(spec: ModelSpec, context: int, size: int) -> int:
    """The keys and values of one of its layers; of both stacks the biases by distance, and a block of them."""
    heads = spec.encoder[0].attention.heads
    biases = (4 * 2 * 2 * context + 4 * min(SCORES // heads, context * context)) * heads
    return context * spec.encoder[0].attention.cache_width * size + (biases if spec.relative_positions else 0)


def _process() -> Term:
    size = PROCESS - FIRST_PRODUCT if built.expected() else PROCESS
    return Term("process", Amount(size, "interpreter, torch, tokenizer (typical)"), "-")


def _largest_block(spec: ModelSpec, dtype: str) -> int:
    """Weights of the largest block of rows that is unpacked at once."""
    experts = formats_of(dtype).experts
    shapes = [tensor.shape for tensor, _ in counted_tensors(spec) if dense_dtype(tensor, dtype) == experts]
    shapes += [
        shape
        for mixture in _mixtures(spec)
        for shape in expert_shapes(mixture.latent_width or spec.hidden_size, mixture.expert).values()
    ]
    return max((min(shape[0], block_rows(shape[1])) * shape[1] for shape in shapes), default=0)


def _native_attention(attention: Attention, tokens: int, context: int, size: int) -> int:
    """Queries, keys, values and what is mixed of them, and each thread's blocks in float32."""
    if isinstance(attention, MLA):
        widths, rank = attention.head_dim + attention.value_dim, attention.kv_rank
        absorbed = (blocking.QUERIES + blocking.KEYS) * (attention.cache_width + rank)
        expanded = min(blocking.SHARING, tokens) * widths + rank * (attention.nope_dim + attention.value_dim)
        scratch = max(absorbed, expanded + blocking.KEYS * (widths + attention.cache_width))
        rows = 4 * attention.heads * attention.head_dim + 2 * attention.cache_width
    else:
        scratch = (blocking.QUERIES + blocking.KEYS) * 2 * attention.head_dim
        rows = 3 * (attention.query_width + attention.cache_width)
        if attention.chunked and attention.window is not None and attention.window < context:
            rows += attention.cache_width * (attention.window // max(tokens, 1) + 1)  # a copy of one chunk's
    return 4 * blocking.THREADS * scratch + rows * tokens * size


def _gate(layer: Layer, tokens: int, size: int) -> int:
    """The numbers that open and close attention's heads, in float64 as well, and what they multiply."""
    attention = layer.attention
    mixed = attention.heads * attention.value_dim if isinstance(attention, MLA) else attention.mixed_width
    return tokens * (attention.gate_width * (2 * size + 16) + mixed * size) if attention.gate_width else 0


def _indexer(layer: Layer, tokens: int, context: int, size: int) -> int:
    """All queries of its heads, as they are and in float32, as the keys; of one token the scores and its latents."""
    indexer = _indexer_of(layer)
    if indexer is None:
        return 0
    queries = tokens * indexer.heads * indexer.head_dim * (2 * size + 4)
    scores = context * (indexer.heads + indexer.head_dim) * 4
    return queries + scores + indexer.top_k * layer.attention.cache_width * size


def _indexer_of(layer: Layer) -> Indexer | None:
    return layer.attention.indexer if isinstance(layer.attention, MLA) else None


def _attention(attention: Attention, tokens: int, context: int, size: int) -> int:
    """The same where torch computes it: a block of scores beside the keys and values as the library packs them."""
    keys = context if attention.window is None else min(context, attention.window + tokens)
    keys = -(-keys // BUCKET) * BUCKET
    block = min(SCORES, attention.heads * tokens * keys)  # see engine.attention.attend
    scores = max(block, attention.heads * keys) * (size + 4 + 4)
    if isinstance(attention, MLA):
        expanded = min(SCORES, keys * attention.heads * (attention.head_dim + attention.value_dim))
        queries = 3 * tokens * attention.heads * attention.head_dim * size
        return scores + expanded * (size + PACKED_KEY // 2) + queries
    packed = PACKED_KEY * attention.kv_width * keys
    return scores + packed + 3 * tokens * (attention.query_width + attention.cache_width) * size


def _recurrent(recurrent: Recurrent, tokens: int, size: int) -> int:
    """What is projected and mixed of all tokens; of some at once, in float32, what lies between."""
    inputs = {extra.role: extra.shape[0] for extra in recurrent.tensors}
    projected = inputs.get("mixer_in", 0) + inputs.get("mixer_gates", 0)
    widened = 2 * recurrent.inner if recurrent.kind is RecurrentKind.CHANNEL_DELTA else 0  # decays, and the gate
    between = projected + recurrent.channels + recurrent.operands + recurrent.inner + widened
    return tokens * (projected + recurrent.inner) * size + 4 * min(tokens, blocking.STATE_STEP) * between


def _feed_forwards(spec: ModelSpec, dtype: str, block: int, size: int, waiting: bool) -> Amount:
    """The largest mixture; of a dense model gate and up of a chunk beside their float32 sums."""
    if mixtures := _mixtures(spec):
        return named("experts", max(_mixture(spec, mixture, dtype, block, size, waiting) for mixture in mixtures))
    widths = [layer.ffn.intermediate_size for layer, _ in alike(spec.layers) if isinstance(layer.ffn, FeedForward)]
    return named("feed-forward", min(block, CHUNK) * max(widths, default=0) * 2 * (size + 4))


def _mixture(spec: ModelSpec, mixture: Mixture, dtype: str, block: int, size: int, waiting: bool) -> int:
    """The normed states and their float32 sums; of one expert its tokens, what is between, and what they become."""
    width = mixture.latent_width or spec.hidden_size
    rows = min(block, CHUNK) if mixture_record(spec, mixture, dtype).whole else block  # pieces pass but once
    inside = rows * (width * (size + 8) + mixture.expert.intermediate_size * 5)
    outputs = 4 * block * mixture.router.top_k * width if waiting else 0
    if mixture.router.scoring is Scoring.SIGMOID_INPUT:  # what each expert reads, and what they make before the sum
        inside += block * mixture.router.top_k * width * (size + 4)
    return block * (spec.hidden_size * size + width * 4) + inside + outputs
