"""ModelSpec: the frozen vocabulary of one model, all that the engine and the arithmetic may know about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Activation(Enum):
    """The nonlinearity of a feed-forward block, by its `hidden_act` name."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_pytorch_tanh"
    RELU = "relu"


class NormKind(Enum):
    """How a hidden state is normalised; both without bias, statistics in float32."""

    RMS = "rms"
    LAYER = "layer"


class QkNorm(Enum):
    """What the extra RMS norm on queries and keys spans, before the rotation."""

    NONE = "none"
    FULL = "full"  # the whole projection (OLMoE)
    HEAD = "head"  # each head by itself (Qwen3)


class RopeKind(Enum):
    """How rotary frequencies are stretched beyond the training context, by `rope_type`."""

    DEFAULT = "default"
    LINEAR = "linear"
    DYNAMIC = "dynamic"
    YARN = "yarn"
    LLAMA3 = "llama3"
    LONGROPE = "longrope"


class Scoring(Enum):
    """How router logits become scores and weights."""

    SOFTMAX = "softmax"  # softmax over all experts, then pick
    SIGMOID = "sigmoid"  # each expert by itself, then pick (DeepSeek-V3)
    SOFTMAX_OF_CHOSEN = "softmax of the chosen"  # pick by logit, then softmax over the picked


class GroupScore(Enum):
    """How an expert group is ranked in group-limited routing."""

    MAX = "max"  # DeepSeek-V2
    TOP2_SUM = "sum of the best two"  # DeepSeek-V3


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding of one attention (RoFormer; YaRN arXiv 2309.00071; LongRoPE 2402.13753)."""

    theta: float
    dims: int  # leading dimensions of the head that rotate
    interleaved: bool = False  # pairs are even/odd neighbours instead of first/second half
    kind: RopeKind = RopeKind.DEFAULT
    factor: float = 1.0
    original_context: int = 0  # the training context that the stretching starts from
    attention_factor: float = 1.0  # multiplies cos and sin
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # yarn: round the correction range to whole dimensions
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    @property
    def depends_on_length(self) -> bool:
        """Whether the frequencies change with the length of the text."""
        return self.kind in (RopeKind.DYNAMIC, RopeKind.LONGROPE)


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

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def cache_width(self) -> int:
        """Numbers kept per token."""
        return 2 * self.kv_width


@dataclass(frozen=True, slots=True)
class Latent:
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

    @property
    def head_dim(self) -> int:
        return self.nope_dim + self.rope_dim

    @property
    def cache_width(self) -> int:
        """Numbers kept per token: the latent and the shared rotary key, not the expanded heads."""
        return self.kv_rank + self.rope_dim


Attention = GroupedQuery | Latent


@dataclass(frozen=True, slots=True)
class Router:
    """Which experts a token takes, and with what weights."""

    experts: int
    active: int
    scoring: Scoring = Scoring.SOFTMAX
    norm_power: float | None = None  # divide by the p-norm of the chosen weights; None: leave as they are
    norm_epsilon: float = 0.0  # added to that norm
    scaling: float = 1.0
    groups: int = 1
    kept_groups: int = 1
    group_score: GroupScore = GroupScore.MAX
    correction_bias: bool = False  # added to the scores for picking only


@dataclass(frozen=True, slots=True)
class FeedForward:
    """A gated block: down(activation(gate x) * up x)."""

    width: int
    activation: Activation = Activation.SILU


@dataclass(frozen=True, slots=True)
class Mixture:
    """A Mixture-of-Experts block; all experts of a layer have one shape."""

    router: Router
    expert: FeedForward
    shared: FeedForward | None = None  # always on
    shared_gate: bool = False  # its output is multiplied by sigmoid(w . x)


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder block."""

    attention: Attention
    ffn: FeedForward | Mixture


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder-only transformer, said completely. Widths are in numbers, not bytes."""

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
    logit_multiplier: float = 1.0
    stored_dtype: str | None = None  # what config.json says the weights are, e.g. "bfloat16"
    quantization: str | None = None  # how config.json says they are quantised, e.g. "fp8"
    extra_layers: int = 0  # multi-token-prediction layers in the files after the last real one; not loaded

    @property
    def mixtures(self) -> tuple[tuple[int, Mixture], ...]:
        """The MoE layers with their indices."""
        return tuple((index, layer.ffn) for index, layer in enumerate(self.layers) if isinstance(layer.ffn, Mixture))
