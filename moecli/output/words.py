"""A spec in plain words: attention, router, experts, as one line each."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

from moecli.model.spec import (
    MLA,
    Attention,
    FeedForward,
    GroupedQuery,
    GroupScore,
    Indexer,
    Layer,
    Mixture,
    ModelSpec,
    QkNorm,
    RelativePositions,
    Rope,
    RopeKind,
    Router,
    Scoring,
)

_NO_ROPE = "no rotary positions"


def attention_lines(spec: ModelSpec) -> list[str]:
    """What each kind of layer does to mix tokens, with how many layers do it where there are several kinds."""
    kinds = Counter(_mixer(layer) for layer in spec.blocks)
    kinds.pop("", None)
    if (positions := spec.relative_positions) is not None:
        said = relative_positions(positions)
        kinds = Counter({kind.replace(_NO_ROPE, said): number for kind, number in kinds.items()})
    if len(kinds) == 1:
        return list(kinds)
    return [f"{number} layers: {kind}" for kind, number in kinds.items()]


def _mixer(layer: Layer) -> str:
    if layer.recurrent is not None:
        return layer.recurrent.kind.value
    if isinstance(layer.attention, GroupedQuery) and not layer.attention.heads:
        return ""
    return attention(layer.attention)


def attention(kind: Attention) -> str:
    """An attention in words: heads, widths, window, positions."""
    parts = _latent(kind) if isinstance(kind, MLA) else _grouped(kind)
    return "; ".join(part for part in (*parts, _window(kind), rope(kind.rope)) if part)


def attention_kind(kind: Attention) -> str:
    """The usual abbreviation of an attention: mla, mha, mqa or gqa."""
    if isinstance(kind, MLA):
        return "mla"
    if kind.kv_heads == kind.heads:
        return "mha"
    return "mqa" if kind.kv_heads == 1 else "gqa"


def _grouped(kind: GroupedQuery) -> list[str]:
    name = {"mha": "multi-head", "mqa": "multi-query", "gqa": "grouped-query"}[attention_kind(kind)]
    heads = f"{kind.heads} heads of {kind.head_dim}"
    if kind.kv_heads != kind.heads:
        heads += f" share {kind.kv_heads} key/value heads"
    extras = [
        f"values of {kind.value_dim}" if kind.value_dim else "",
        "keys serve as values" if kind.keys_as_values else "",
        "biases" if kind.qkv_bias else "",
        _QK_NORMS[kind.qk_norm],
        f"clipped at {_number(kind.clip)}" if kind.clip is not None else "",
        f"logits capped at {_number(kind.softcap)}" if kind.softcap is not None else "",
        "sinks" if kind.sinks else "",
        "gated output" if kind.gate_width else "",
        "queries grow with the position" if kind.query_growth else "",
    ]
    return [f"{name}, {heads}", ", ".join(extra for extra in extras if extra)]


_QK_NORMS = {
    QkNorm.NONE: "",
    QkNorm.FULL: "q/k norm over all heads",
    QkNorm.HEAD: "q/k norm per head",
    QkNorm.ROTATED_HEAD: "q/k norm per head after the rotation",
    QkNorm.UNWEIGHTED: "q/k norm per head without weights",
}


def _latent(kind: MLA) -> list[str]:
    key = "rotary" if kind.rope.dims else "shared"
    ranks = f"key/value latent of {kind.kv_rank} and a {key} key of {kind.rope_dim}"
    queries = "full queries" if kind.query_rank is None else f"query latent of {kind.query_rank}"
    grow = ["queries grow with the position"] if kind.query_growth else []
    chosen = [_chosen(kind.indexer)] if kind.indexer else []
    return [f"multi-head latent, {kind.heads} heads of {kind.head_dim}", ranks, queries, *grow, *chosen]


def _chosen(indexer: Indexer) -> str:
    picks = "a layer before picks" if indexer.shared else f"an indexer of {indexer.heads} heads picks"
    return f"{picks} {indexer.top_k:,} tokens"


def _window(kind: Attention) -> str:
    if kind.window is None:
        return ""
    chunked = isinstance(kind, GroupedQuery) and kind.chunked
    return f"chunks of {kind.window:,} tokens" if chunked else f"window of {kind.window:,} tokens"


def rope(rope: Rope) -> str:
    """A rotary embedding in words: dimensions, theta, stretch."""
    if not rope.dims:
        return _NO_ROPE
    pairs = ", interleaved" if rope.interleaved else ""
    if rope.kind is RopeKind.PROPORTIONAL:
        return f"RoPE on {rope.turning} of {rope.dims} dimensions, theta {_number(rope.theta)}{pairs}"
    stretch = "" if rope.kind is RopeKind.DEFAULT else f", {rope.kind.value} x{_number(rope.factor)}"
    return f"RoPE on {rope.dims} dimensions, theta {_number(rope.theta)}{pairs}{stretch}"


def relative_positions(positions: RelativePositions) -> str:
    """A table of relative positions in words."""
    return f"relative positions in {positions.buckets} ranges up to {positions.max_distance} tokens"


def router(rule: Router) -> str:
    """A router in words: how experts are chosen and weighed."""
    pick = f"best {rule.top_k} of {rule.experts}"
    if rule.n_group > 1:
        rank = "best score" if rule.group_score is GroupScore.MAX else "sum of its best two scores"
        pick += f", from the {rule.topk_group} best of {rule.n_group} groups (by the {rank})"
    sentences = {
        Scoring.SOFTMAX: f"softmax over all, then the {pick}",
        Scoring.SIGMOID: f"sigmoid of each, then the {pick}",
        Scoring.SQRT_SOFTPLUS: f"square root of softplus of each, then the {pick}",
        Scoring.SOFTMAX_OF_CHOSEN: f"{pick}, then softmax over the chosen",
        Scoring.SIGMOID_INPUT: f"{pick}; sigmoid of its score scales what it reads",
        Scoring.SPARSEMIXER: f"sparsemixer: {pick}, each weighed against its close rivals",
    }
    weights = _weights(rule)
    extras = [
        "a bias per expert corrects the choice, not the weights" if rule.correction_bias else "",
        "some layers choose by token, from a table" if rule.by_token else "",
        f"logits capped at {_number(rule.softcap)}" if rule.softcap else "",
        "a factor for each expert" if rule.expert_scale else "",
        f"an expert takes {rule.capacity:,} tokens of a text, others skip the layer" if rule.capacity else "",
    ]
    return "; ".join(text for text in (sentences[rule.scoring], weights, *extras) if text)


def _weights(rule: Router) -> str:
    plain = rule.scoring in (Scoring.SOFTMAX, Scoring.SIGMOID, Scoring.SQRT_SOFTPLUS)
    if rule.norm_power is not None:
        norm = "sum" if rule.norm_power == 1 else f"{_number(rule.norm_power)}-norm"
        text = f"weights divided by their {norm}"
    else:
        text = "weights as they are" if plain else ""
    return f"{text}{', ' if text else 'weights '}times {_number(rule.scaling)}" if rule.scaling != 1 else text


def normalised(rule: Router) -> bool:
    """Whether the weights of the chosen experts sum to one."""
    return rule.norm_power is not None or rule.scoring is Scoring.SOFTMAX_OF_CHOSEN


def mixture_of(spec: ModelSpec) -> Mixture | None:
    """The first mixture: all of a model's mixtures have one router and one expert shape, or nearly."""
    return next((layer.ffn for layer in spec.blocks if isinstance(layer.ffn, Mixture)), None)


def shared_experts(mixture: Mixture) -> int:
    """Always-on experts, in units of a routed one: one block twice as wide counts as two."""
    if mixture.shared is None:
        return 0
    whole = Fraction(mixture.shared.intermediate_size, mixture.expert.intermediate_size)
    return int(whole) if whole.denominator == 1 else 1


def feed_forward(ffn: FeedForward) -> str:
    """A feed-forward block in words: SwiGLU, 14,336 wide."""
    names = {
        "silu": "SwiGLU", "gelu": "GEGLU", "gelu_pytorch_tanh": "GEGLU (tanh)", "swigluoai": "clamped SwiGLU",
        "silu, cut at 7": "SwiGLU cut at 7", "silu, cut at 16": "SwiGLU cut at 16",
    }  # fmt: skip
    kind = ffn.activation.value
    return f"{names.get(kind, f'gated {kind}') if ffn.gated else kind}, {ffn.intermediate_size:,} wide"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"
