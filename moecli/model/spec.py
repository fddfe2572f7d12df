"""ModelSpec: the frozen vocabulary of one model, all that the engine and the arithmetic may know about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from moecli.model.unsupported import Unsupported


class Part(Enum):
    """Where a parameter is counted; every tensor belongs to exactly one part."""

    EMBEDDING = "embedding"
    ATTENTION = "attention"
    MIXER_OTHER = "mixer_other"  # what stands in place of attention: Mamba, gated delta net, lightning attention
    ROUTER = "router"
    ROUTED_EXPERTS = "routed_experts"
    SHARED_EXPERTS = "shared_experts"
    DENSE_FFN = "dense_ffn"
    NORMS = "norms"
    OTHER = "other"  # between the blocks: hyper-connections, projections around the experts
    LM_HEAD = "lm_head"


class Activation(Enum):
    """The nonlinearity of a feed-forward block, by its `hidden_act` name."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_pytorch_tanh"
    RELU = "relu"
    RELU_SQUARED = "relu2"
    SILU_TO_7 = "silu, cut at 7"  # what silu makes of the gate above, up on both sides (Step 3.5)
    SILU_TO_16 = "silu, cut at 16"
    CLAMPED_SWIGLU = "swigluoai"  # gpt-oss
    SITU = "situ"  # Kimi-K3


class NormKind(Enum):
    """How a hidden state is normalised; statistics in float32."""

    RMS = "rms"
    LAYER = "layer"
    ZERO_CENTRED = "zero-centred rms"  # RMS whose factors are 1 + what is stored; those of queries and keys too


class QkNorm(Enum):
    """What the extra RMS norm on queries and keys spans, before the rotation unless it says otherwise."""

    NONE = "none"
    FULL = "full"  # the whole projection (OLMoE)
    HEAD = "head"  # each head by itself (Qwen3)
    ROTATED_HEAD = "rotated head"  # each head by itself, after the rotation (Hunyuan)
    UNWEIGHTED = "unweighted"  # the same without weights (Llama 4)

    @property
    def has_weights(self) -> bool:
        """Whether queries and keys are multiplied by a weight each after it."""
        return self not in (QkNorm.NONE, QkNorm.UNWEIGHTED)


class Gate(Enum):
    """What makes a factor for the heads' outputs of a projection of what attention reads."""

    SIGMOID = "sigmoid"
    SOFTPLUS = "softplus"  # Laguna


class RopeKind(Enum):
    """How rotary frequencies are stretched beyond the training context, by `rope_type`."""

    DEFAULT = "default"
    LINEAR = "linear"
    DYNAMIC = "dynamic"
    YARN = "yarn"
    LLAMA3 = "llama3"
    LONGROPE = "longrope"
    PROPORTIONAL = "proportional"  # of a whole head's pairs only the fastest turn (Gemma 4)


class Scoring(Enum):
    """How router logits become scores and weights."""

    SOFTMAX = "softmax"  # softmax over all experts, then pick
    SIGMOID = "sigmoid"  # each expert by itself, then pick (DeepSeek-V3)
    SOFTMAX_OF_CHOSEN = "softmax of the chosen"  # pick by logit, then softmax over the picked
    SIGMOID_INPUT = "sigmoid, on the input"  # the weight multiplies what the expert reads (Llama 4)
    SPARSEMIXER = "sparsemixer"  # one after the other, each against its close rivals only (Phi-3.5-MoE)
    SQRT_SOFTPLUS = "square root of softplus"  # DeepSeek-V4


class GroupScore(Enum):
    """How an expert group is ranked in group-limited routing."""

    MAX = "max"  # DeepSeek-V2
    TOP2_SUM = "sum of the best two"  # DeepSeek-V3


@dataclass(frozen=True, slots=True)
class Extra:
    """A tensor that no field describes: counted and held, but not computed with yet."""

    role: str
    shape: tuple[int, ...]
    part: Part


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding of one attention (RoFormer; YaRN arXiv 2309.00071; LongRoPE 2402.13753)."""

    theta: float
    dims: int  # leading dimensions of the head that rotate; 0: no positions
    interleaved: bool = False  # pairs are even/odd neighbours instead of first/second half
    kind: RopeKind = RopeKind.DEFAULT
    factor: float = 1.0
    original_context: int = 0  # the training context that the stretching starts from
    attention_factor: float = 1.0  # multiplies cos and sin
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # yarn: round the correction range to whole dimensions
    turning: int = 0  # proportional: the dimensions that do turn
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    @property
    def depends_on_length(self) -> bool:
        """Whether the frequencies change with the length of the text."""
        return self.kind in (RopeKind.DYNAMIC, RopeKind.LONGROPE)


NO_ROPE = Rope(theta=1.0, dims=0)


@dataclass(frozen=True, slots=True)
class RelativePositions:
    """A learned number per head and range of distances, added to q.k; one table for all layers of a stack (T5)."""

    buckets: int  # ranges: half of them single distances, the others ever wider
    max_distance: int  # from here on all share the last


@dataclass(frozen=True, slots=True)
class QueryGrowth:
    """Queries at position p are multiplied by 1 + rate * ln(1 + floor((p + offset) / every)) (arXiv 2501.19399)."""

    rate: float
    every: float
    offset: int = 0


@dataclass(frozen=True, slots=True)
class GroupedQuery:
    """Grouped-query attention (multi-head when `kv_heads == heads`)."""

    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope
    scale: float  # multiplies q.k
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: QkNorm = QkNorm.NONE
    clip: float | None = None  # the q/k/v projections are clamped to +-clip
    softcap: float | None = None  # logits become cap * tanh(logits / cap)
    window: int | None = None  # key j is visible to query i iff i - j < window
    chunked: bool = False  # the window does not slide: it starts anew at its multiples (Llama 4)
    value_dim: int | None = None  # of a value head; None: head_dim
    keys_as_values: bool = False  # one projection makes both: the values are the keys before norm and rotation
    value_norm: bool = False  # each value head by itself, RMS without a weight (Gemma 4)
    value_scale: float = 1.0  # multiplies the values
    query_growth: QueryGrowth | None = None
    gate_width: int = 0  # outputs of a projection that multiplies the heads, or each number of theirs
    gate: Gate = Gate.SIGMOID
    sinks: bool = False  # one logit per head that takes part in the softmax only (gpt-oss)
    projections: tuple[Extra, ...] = ()  # stand in place of the q, k, v and o matrices and their norms

    @property
    def query_width(self) -> int:
        """Numbers in the queries of one token, all heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Numbers in the keys of one token, all key/value heads together."""
        return self.kv_heads * self.head_dim

    @property
    def value_head_dim(self) -> int:
        """Numbers in one value head."""
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def value_width(self) -> int:
        """Numbers in the values of one token, all key/value heads together."""
        return self.kv_heads * self.value_head_dim

    @property
    def projection(self) -> str:
        """The role of the matrix that makes queries, keys and values."""
        return "qk" if self.keys_as_values else "qkv"

    @property
    def projected_width(self) -> int:
        """Numbers that it makes of one token."""
        return self.query_width + self.kv_width + (0 if self.keys_as_values else self.value_width)

    @property
    def mixed_width(self) -> int:
        """Numbers that the heads make of the values of all tokens for one, all heads together."""
        return self.heads * self.value_head_dim

    @property
    def cache_width(self) -> int:
        """Numbers that the cache keeps per token: keys and values."""
        return self.kv_width + self.value_width


@dataclass(frozen=True, slots=True)
class Indexer:
    """What picks the tokens that a query attends to (DeepSeek-V3.2, arXiv 2512.02556): a few heads, a key per token.

    A token scores the sum, over heads, of a weight that the query's token gives times relu(q.k).
    """

    heads: int
    head_dim: int  # the leading ones rotate as attention's shared key does
    top_k: int  # tokens that are attended to, the query's own among them only if its score is; of fewer, all
    interleaved: bool = False  # as of a rope, whatever attention's is
    shared: bool = False  # it only takes what the last layer before it with one of its own chose (arXiv 2603.12201)


@dataclass(frozen=True, slots=True)
class MLA:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): one low-rank latent and one rotary key per token."""

    heads: int
    query_rank: int | None  # None: one full query projection
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    rope: Rope
    scale: float
    bias: bool = False  # on the two down projections and the output
    norm_eps: float = 1e-6  # of the norms on the latents; a constant of the family
    window: int | None = None
    gate_width: int = 0  # as in GroupedQuery
    query_growth: QueryGrowth | None = None
    indexer: Indexer | None = None  # which reads the queries' latent

    @property
    def head_dim(self) -> int:
        """Numbers in one query or key head: those that do not rotate and those that do."""
        return self.nope_dim + self.rope_dim

    @property
    def index_width(self) -> int:
        """Numbers that an indexer keeps per token."""
        return 0 if self.indexer is None or self.indexer.shared else self.indexer.head_dim

    @property
    def cache_width(self) -> int:
        """Numbers kept per token: the latent and the shared rotary key, not the expanded heads."""
        return self.kv_rank + self.rope_dim


Attention = GroupedQuery | MLA
NO_ATTENTION = GroupedQuery(heads=0, kv_heads=0, head_dim=0, rope=NO_ROPE, scale=1.0)


class RecurrentKind(Enum):
    """What a mixer with a state computes, in plain words."""

    DELTA_NET = "gated delta net"  # arXiv 2412.06464
    SHORT_CONVOLUTION = "short convolution"  # LFM2
    MAMBA = "mamba"  # with norms on step and maps (Jamba)
    MAMBA2 = "mamba-2"  # arXiv 2405.21060
    LIGHTNING = "lightning attention"  # arXiv 2401.04658: a decay of each head, whatever the token
    CHANNEL_DELTA = "kimi delta attention"  # a gated delta net with a decay of each row, arXiv 2510.26692


@dataclass(frozen=True, slots=True)
class Recurrent:
    """A token mixer that keeps a state of fixed size instead of a cache; its sizes are 0 where it is only counted."""

    kind: RecurrentKind
    tensors: tuple[Extra, ...]
    state: int  # numbers kept per sequence, whatever its length
    heads: int = 0  # channels, where each is a head of its own
    head_dim: int = 0
    groups: int = 0  # of heads that share what writes and reads the state: key heads
    state_dim: int = 0  # rows of a head's state: key_dim
    kernel: int = 0  # tokens that the convolution sees; 1: there is none
    rank: int = 0  # of Mamba's steps; of Kimi's decays and of its gate, 0: the input projection makes them
    norm_eps: float = 1e-6
    floor: float = 0.0  # of the logarithms of Kimi's decays: floor * sigmoid(rate * step); 0: -rate * softplus(step)
    slope: float = 0.0  # of lightning attention: head h of H decays by slope / 2^(8 h / H) a token, h from 1

    @property
    def inner(self) -> int:
        """Numbers that it makes of a token, before the output projection."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Numbers of a token that are convolved."""
        whole = self.kind in (RecurrentKind.SHORT_CONVOLUTION, RecurrentKind.MAMBA)
        return self.inner + (0 if whole else 2 * self.groups * self.state_dim)

    @property
    def operands(self) -> int:
        """Numbers of a token that its recurrence computes with."""
        if self.kind is RecurrentKind.SHORT_CONVOLUTION:
            return 0
        if self.kind is RecurrentKind.MAMBA:
            return 2 * (self.inner + self.state_dim)
        decays = self.heads * (self.state_dim if self.kind is RecurrentKind.CHANNEL_DELTA else 1)
        return self.channels + decays + self.heads


@dataclass(frozen=True, slots=True)
class Router:
    """Which experts a token takes, and with what weights."""

    experts: int
    top_k: int
    scoring: Scoring = Scoring.SOFTMAX
    norm_power: float | None = None  # divide by the p-norm of the chosen weights; None: leave as they are
    norm_epsilon: float = 0.0  # added to that norm
    norm_floor: float = 0.0  # the least that norm can be (ERNIE-4.5)
    scaling: float = 1.0
    n_group: int = 1
    topk_group: int = 1
    group_score: GroupScore = GroupScore.MAX
    correction_bias: bool = False  # added to the scores for picking only
    bias: bool = False  # of the linear map itself (gpt-oss)
    by_token: bool = False  # a table picks by token id; the scores only weigh (DeepSeek-V4)
    reads_scaled: bool = False  # not the layer's norm, but x / rms(x) times a vector of its own (Gemma 4)
    expert_scale: bool = False  # a stored factor of each expert's weight (Gemma 4)
    softcap: float | None = None  # logits become cap * tanh(logits / cap)
    jitter: float = 0.0  # sparsemixer: experts this close to the best, relatively and twice over, are its rivals
    capacity: int | None = None  # tokens of one pass that an expert takes; later ones get nothing of it (Switch)


@dataclass(frozen=True, slots=True)
class FeedForward:
    """A gated block, down(activation(gate x) * up x), or a plain one, down(activation(up x))."""

    intermediate_size: int
    activation: Activation = Activation.SILU
    gated: bool = True
    bias: bool = False


NO_FFN = FeedForward(intermediate_size=0)


@dataclass(frozen=True, slots=True)
class Mixture:
    """A Mixture-of-Experts block; all experts of a layer have one shape."""

    router: Router
    expert: FeedForward
    shared: FeedForward | None = None  # always on
    shared_gate: bool = False  # its output is multiplied by sigmoid(w . x)
    shared_scale: float = 1.0  # multiplies its output
    latent_width: int | None = None  # experts read and write a projection this wide (Kimi-K3); None: hidden_size


@dataclass(frozen=True, slots=True)
class Carry:
    """What a half leaves where its norm's output goes on, not what the norm read: kept * normed + added * made."""

    kept: float
    added: float


@dataclass(frozen=True, slots=True)
class Layer:
    """One block: each half has a norm before it. NO_ATTENTION and NO_FFN stand for a half that is not there."""

    attention: Attention
    ffn: FeedForward | Mixture
    recurrent: Recurrent | None = None  # where attention is not
    cross: GroupedQuery | None = None  # attention to the encoder's output, after the layer's own, with its norm
    parallel: FeedForward | None = None  # a dense block beside the mixture, with a norm of its own
    parallel_norms: bool = False  # dense block and mixture each have a norm after them, before they are added (Gemma 4)
    ffn_reads_input: bool = False  # the mixture reads what attention reads, not what comes of it (Arctic)
    one_norm: bool = False  # and with it the feed-forward reads that as attention's norm leaves it (Cohere)
    output_scale: bool = False  # a stored factor of the hidden state that the layer leaves (Gemma 4)
    carries: tuple[Carry, Carry] | None = None  # of its halves (MiniMax)
    extra: tuple[Extra, ...] = ()
    cache_extra: int = 0  # numbers per token beside keys and values that are only counted: compressed entries

    @property
    def index_width(self) -> int:
        """Numbers that the cache keeps per token beside keys and values, whatever the window."""
        return self.cache_extra + (self.attention.index_width if isinstance(self.attention, MLA) else 0)

    @property
    def mixes(self) -> bool:
        """Whether it has the half that sees other tokens."""
        return self.recurrent is not None or isinstance(self.attention, MLA) or self.attention.heads > 0

    @property
    def feeds(self) -> bool:
        """Whether it has the half that sees each token alone."""
        return isinstance(self.ffn, Mixture) or self.ffn.intermediate_size > 0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A transformer, said completely if `unsupported` is empty, else as far as sizes go. Widths are in numbers."""

    family: str
    hidden_size: int
    vocab_size: int
    context_length: int
    layers: tuple[Layer, ...]
    norm: NormKind = NormKind.RMS
    norm_eps: float = 1e-5
    branch_norms: bool = False  # a second norm on each branch's output, before the residual add (Grok-1)
    tied_embeddings: bool = False
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0  # scales each branch before the residual add
    logit_multiplier: float = 1.0
    logit_softcap: float | None = None  # logits become cap * tanh(logits / cap)
    stored_dtype: str | None = None  # what config.json says the weights are, e.g. "bfloat16"
    quantization: str | None = None  # how config.json says they are quantised, e.g. "fp8"
    extra_layers: int = 0  # multi-token-prediction layers in the files after the last real one; not loaded
    norm_bias: bool = False
    lm_head_bias: bool = False
    encoder: tuple[Layer, ...] = ()  # read before the decoder, with a final norm of its own
    start_id: int = 0  # what the decoder of an encoder-decoder model begins with
    relative_positions: RelativePositions | None = None
    extra: tuple[Extra, ...] = ()
    unsupported: tuple[Unsupported, ...] = ()  # what the engine lacks; runnable iff empty
    notes: tuple[str, ...] = ()  # what a reader of the counts should know
    unread_keys: tuple[str, ...] = field(default=(), compare=False)  # of config.json: nothing reads them

    def __post_init__(self) -> None:
        """Equal layers become one object: see `alike`."""
        known: dict[Layer, Layer] = {}
        for name in ("layers", "encoder"):
            layers = {id(layer): layer for layer in getattr(self, name)}
            same = {key: known.setdefault(layer, layer) for key, layer in layers.items()}
            object.__setattr__(self, name, tuple(same[id(layer)] for layer in getattr(self, name)))

    def with_capacity(self, tokens: int | None) -> ModelSpec:
        """The same model, but for how many tokens of one pass an expert takes; None: any number."""

        def limited(layer: Layer) -> Layer:
            if not isinstance(layer.ffn, Mixture):
                return layer
            return replace(layer, ffn=replace(layer.ffn, router=replace(layer.ffn.router, capacity=tokens)))

        return replace(self, encoder=tuple(map(limited, self.encoder)), layers=tuple(map(limited, self.layers)))

    def within(self, tokens: int) -> ModelSpec:
        """The same model for texts of so many tokens at most: without indexers that would pick all of them."""

        def plain(layer: Layer) -> Layer:
            attention = layer.attention
            if not isinstance(attention, MLA) or attention.indexer is None or attention.indexer.top_k < tokens:
                return layer
            return replace(layer, attention=replace(attention, indexer=None))

        return replace(self, layers=tuple(map(plain, self.layers)))

    @property
    def lacks(self) -> tuple[str, ...]:
        """What the engine lacks for this model, as a screen names it."""
        return tuple(reason.value for reason in self.unsupported)

    @property
    def blocks(self) -> tuple[Layer, ...]:
        """All layers as they are numbered: an encoder's, then the decoder's."""
        return (*self.encoder, *self.layers)

    @property
    def stacks(self) -> dict[str, range]:
        """The numbers of the layers that one text passes: of a decoder alone under "", else of encoder and decoder."""
        depth, whole = len(self.encoder), len(self.encoder) + len(self.layers)
        return {"encoder": range(depth), "decoder": range(depth, whole)} if depth else {"": range(whole)}

    @property
    def mixtures(self) -> tuple[tuple[int, Mixture], ...]:
        """The MoE layers with their numbers."""
        return tuple((index, layer.ffn) for index, layer in enumerate(self.blocks) if isinstance(layer.ffn, Mixture))


# The quantised formats whose weights are read, by the names that screens have for them; then those of GGUF files.
DECODED = frozenset(
    {
        "fp8", "int8", "gptq", "awq", "mxfp4", "compressed-tensors 2-bit", "compressed-tensors 4-bit",
        "compressed-tensors 8-bit", "compressed-tensors fp8", "compressed-tensors fp4", "ModelOpt nvfp4",
        "ModelOpt fp8", "MLX 2-bit", "MLX 3-bit", "MLX 4-bit", "MLX 5-bit", "MLX 6-bit", "MLX 8-bit",
        "MLX mxfp4", "MLX mxfp8", "MLX nvfp4", "bitsandbytes 4-bit", "bitsandbytes 8-bit", "Q4_0", "Q4_1", "Q5_0",
        "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4", "Q1_0", "Q2_0", "IQ1_S",
        "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "NVFP4",
    }
)  # fmt: skip


def is_decoded(quantised: str | None) -> bool:
    """Whether weights of this format can be read; None: plain numbers."""
    return quantised is None or quantised in DECODED


def lacks(spec: ModelSpec, quantised: str | None) -> tuple[str, ...]:
    """What the engine lacks for a model whose weights are stored so: mathematics first, then the format."""
    return spec.lacks if is_decoded(quantised) else (*spec.lacks, f"{quantised} weights")


def alike(layers: Sequence[Layer]) -> list[tuple[Layer, int]]:
    """Each kind of layer among those of a spec, and how many there are: what is counted takes no time per layer."""
    found = {id(layer): layer for layer in layers}
    return [(found[key], count) for key, count in Counter(map(id, layers)).items()]
