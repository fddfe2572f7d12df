"""What a model takes, byte by byte: weights, cache, buffers and process. The only arithmetic of memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from moecli.formats import bytes_for
from moecli.params import kv_numbers_per_token
from moecli.records import STAGING, dense_dtype, mixture_record, staging_size
from moecli.spec import Attention, Latent, Mixture, ModelSpec, Part
from moecli.tensors import Tensor, dense_tensors, expert_count, expert_shapes

CHUNK = 512  # prompt tokens per pass through the layers
SCORES = 4_000_000  # attention scores held at once
BUCKET = 64  # keys are scored in multiples of this
# Measured with benchmarks/memory.py (torch 2.13, oneDNN): what no line of ours allocates.
PROCESS = 272 * 2**20  # interpreter, torch and tokenizer before any weight, and the first product
LIBRARY = 18 * 2**20  # compiled products and freed blocks that the allocator keeps, after a first chunk
LIBRARY_CHUNK = 3 * 2**20  # the same for each further chunk
PACKED_KEY = 28  # bytes per number of keys and values while the library multiplies with them
# Measured with benchmarks/gpu.py on an H100 (torch 2.11, CUDA 13): what the plan does not count.
DEVICE_CONTEXT = 800 * 2**20  # of the device: context, kernels and products of libraries, rounding of the allocator
DEVICE_PROCESS = 1070 * 2**20  # of RAM, beside PROCESS: CUDA and its libraries, which unpack their kernels there
STAGED = 2  # experts on their way to the device


@dataclass(frozen=True, slots=True)
class Term:
    """One line of the sum, with its formula in numbers and the config keys they came from."""

    name: str
    bytes: int
    formula: str
    keys: str


@dataclass(frozen=True, slots=True)
class Needs:
    """What one model takes in one format, for `batch` texts of `context` tokens."""

    dtype: str
    context: int
    batch: int
    dense: Term
    experts: Term
    kv: Term
    activations: Term
    process: Term
    chunk: int  # prompt tokens per pass
    expert_count: int  # over all layers
    bytes_per_expert: int  # of the largest
    slot_bytes: int  # the same in whole pages, as a slot holds it
    staging: int  # buffers that experts pass through when some are read from disk
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


def needs(spec: ModelSpec, dtype: str, context: int, batch: int = 1, chunk: int = CHUNK) -> Needs:
    """Every byte that a run allocates; `dtype` is the format of the large matrices."""
    mixtures = _mixtures(spec)
    records = [mixture_record(spec, mixture, dtype) for mixture in mixtures]
    sizes = [_expert_bytes(spec, mixture, dtype) for mixture in mixtures]
    groups = Counter((mixture.router.experts, size) for mixture, size in zip(mixtures, sizes, strict=True))
    return Needs(
        dtype,
        context,
        batch,
        dense=_dense(spec, dtype),
        experts=Term(
            "routed experts",
            sum(layers * experts * size for (experts, size), layers in groups.items()),
            " + ".join(f"{layers} layers x {experts} experts x {size:,}" for (experts, size), layers in groups.items()),
            "layers, experts, expert width, hidden size",
        ),
        kv=_kv(spec, dtype, context, batch, chunk),
        activations=_activations(spec, dtype, context, batch, chunk),
        process=Term("process", PROCESS, "interpreter, torch, tokenizer (typical)", "-"),
        chunk=min(chunk, context),
        expert_count=sum(mixture.router.experts for mixture in mixtures),
        bytes_per_expert=max(sizes, default=0),
        slot_bytes=max((record.stride for record in records), default=0),
        staging=STAGING * max(map(staging_size, records), default=0),
        table=0
        if spec.tied_embeddings
        else sum(tensor_bytes(t, dtype) for t in dense_tensors(spec) if t.part is Part.EMBEDDING),
    )


def survey_needs(spec: ModelSpec, dtype: str, longest: int, tokens: int) -> Needs:
    """All hidden states are kept and the experts see them at once; one layer's cache at a time holds one text."""
    need = needs(spec, dtype, longest)
    size = _number_bytes(dtype)
    states = 3 * tokens * spec.hidden_size * size
    mixture = max((_mixture(spec, mixture, tokens, size) for mixture in _mixtures(spec)), default=0)
    library = int(min(64, tokens / CHUNK) * LIBRARY_CHUNK)
    formula = (
        f"{need.activations.formula}; for {tokens} tokens at once: states {states:,}, experts {mixture:,}, "
        f"matrix library {library:,}"
    )
    return replace(
        need,
        chunk=tokens,
        kv=replace(need.kv, bytes=need.kv.bytes // len(spec.layers), formula=f"1 layer of {need.kv.formula}"),
        activations=Term(
            "activations", need.activations.bytes + states + mixture + library, formula, need.activations.keys
        ),
    )


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
    active = sum(m.router.active * _expert_bytes(spec, m, dtype) for m in _mixtures(spec))
    return active + dense_read_bytes(spec, dtype)


def dense_read_bytes(spec: ModelSpec, dtype: str) -> int:
    """The dense part of it. A tied table is read whole, as the head; of routed attention only what is chosen."""
    read = routed = 0
    for tensor in dense_tensors(spec):
        if tensor.part is Part.ROUTED_EXPERTS:
            routed += tensor_bytes(tensor, dtype)
        elif spec.tied_embeddings or tensor.part is not Part.EMBEDDING:
            read += tensor_bytes(tensor, dtype)
    if routed:
        router = _mixtures(spec)[0].router
        read += routed * router.active // router.experts
    return read


def tensor_bytes(tensor: Tensor, dtype: str) -> int:
    """One dense tensor as stored; sensitive ones in 16 bits at least."""
    return bytes_for(dense_dtype(tensor, dtype), tensor.shape)


def _mixtures(spec: ModelSpec) -> list[Mixture]:
    return [layer.ffn for layer in (*spec.encoder, *spec.layers) if isinstance(layer.ffn, Mixture)]


def _expert_bytes(spec: ModelSpec, mixture: Mixture, dtype: str) -> int:
    width = mixture.latent_width or spec.hidden_size
    shapes = expert_shapes(width, mixture.expert)
    biases = expert_count(width, mixture.expert) - sum(rows * columns for rows, columns in shapes.values())
    return sum(bytes_for(dtype, shape) for shape in shapes.values()) + bytes_for(dtype, (biases,))


def _dense(spec: ModelSpec, dtype: str) -> Term:
    parts: Counter[str] = Counter()
    for tensor in dense_tensors(spec):
        parts[tensor.part.value] += tensor_bytes(tensor, dtype)
    formula = " + ".join(f"{name} {size:,}" for name, size in parts.items())
    return Term("dense weights", sum(parts.values()), formula, "every width but the routed experts'")


def _number_bytes(dtype: str) -> int:
    return 4 if dtype == "fp32" else 2


def _kv(spec: ModelSpec, dtype: str, context: int, batch: int, chunk: int) -> Term:
    """Every layer's rows as the engine allocates them, and the fixed states of layers without attention."""
    rows: Counter[tuple[int, int]] = Counter()
    states = 0
    for layer in spec.layers:
        rows[cache_rows(layer.attention, context, chunk), layer.attention.cache_width] += 1
        rows[context, layer.cache_extra + (layer.cross.cache_width if layer.cross else 0)] += 1
        states += layer.recurrent.state if layer.recurrent else 0
    kinds = [(layers, count, width) for (count, width), layers in rows.items() if width]
    numbers = states + sum(layers * count * width for layers, count, width in kinds)
    terms = [f"{layers} layers x {count:,} rows x {width:,} numbers" for layers, count, width in kinds]
    terms += [f"{states:,} numbers of state"] if states else []
    size = _number_bytes(dtype)
    return Term(
        "KV cache",
        batch * numbers * size,
        f"({' + '.join(terms)}) x {size} bytes x batch {batch}",
        "layers, key/value heads or latent rank, head_dim, sliding_window, --ctx, --batch",
    )


def _activations(spec: ModelSpec, dtype: str, context: int, batch: int, chunk: int) -> Term:
    """The largest buffers alive at once while a chunk of the prompt passes a block, and the rotary tables."""
    size = _number_bytes(dtype)
    tokens = min(chunk, context)
    width = spec.hidden_size
    tables = sum(2 * context * rope.dims * size for rope in {layer.attention.rope for layer in spec.layers})
    stream = 3 * tokens * width * size
    attention = max((_attention(layer.attention, tokens, context, size) for layer in spec.layers), default=0)
    mixture = max((_mixture(spec, mixture, tokens, size) for mixture in _mixtures(spec)), default=0)
    chunks = context / CHUNK
    library = int(min(1, chunks) * LIBRARY + min(64, chunks) * LIBRARY_CHUNK)
    logits = 2 * batch * spec.vocab_size * 4
    routers = sum((4 - size) * tensor.count for tensor in dense_tensors(spec) if tensor.role == "router")
    return Term(
        "activations",
        tables + routers + library + stream + attention + max(mixture, logits),
        f"rotary tables {tables:,} + routers in float32 {routers:,} + matrix library {library:,} + for {tokens} prompt "
        f"tokens at once: residual stream {stream:,}, attention {attention:,}, the larger of experts {mixture:,} and "
        f"logits {logits:,}",
        "hidden size, heads, expert width, vocab_size",
    )


def _attention(attention: Attention, tokens: int, context: int, size: int) -> int:
    keys = context if attention.window is None else min(context, attention.window + tokens)
    keys = -(-keys // BUCKET) * BUCKET
    block = min(SCORES, attention.heads * tokens * keys)  # see engine.attention.attend
    scores = max(block, attention.heads * keys) * (size + 4 + 4)
    if isinstance(attention, Latent):
        expanded = min(SCORES, keys * attention.heads * (attention.head_dim + attention.value_dim))
        queries = 3 * tokens * attention.heads * attention.head_dim * size
        return scores + expanded * (size + PACKED_KEY // 2) + queries
    packed = PACKED_KEY * attention.kv_width * keys
    return scores + packed + 3 * tokens * (attention.query_width + attention.cache_width) * size


def _mixture(spec: ModelSpec, mixture: Mixture, tokens: int, size: int) -> int:
    """Every choice's input, and its output in two orders; the float32 sum; one expert's tokens on their way."""
    width = mixture.latent_width or spec.hidden_size
    outputs = 3 * tokens * mixture.router.active * width * size
    inside = tokens * (2 * width + 2 * mixture.expert.width) * size
    return outputs + 2 * tokens * width * 4 + inside
