"""Pieces of a spec that several families read the same way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from moecli.model.families._config import REQUIRED, ConfigReader
from moecli.model.families._rope import read_rope, yarn_mscale
from moecli.model.spec import (
    MLA,
    Attention,
    FeedForward,
    GroupedQuery,
    GroupScore,
    Layer,
    Mixture,
    ModelSpec,
    QkNorm,
    Router,
    Scoring,
)

MOST_LAYERS = 1000  # the deepest model known has 126
_MOST_EXPERTS = 100_000  # in a layer; the most known are 2,048


def grouped_query(
    c: ConfigReader,
    hidden_size: int,
    context: int,
    *,
    heads: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    theta: float = 10_000.0,
    rotary: float | None = None,
    interleaved: bool = False,
    qk_norm: QkNorm = QkNorm.NONE,
    qkv_bias: bool = False,
    output_bias: bool = False,
    clip: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
    scale: float | None = None,
) -> GroupedQuery:
    """Grouped-query attention from the usual keys; `heads`, `kv_heads`, `head_dim` are the family's defaults.

    `rotary` is its default share of rotating dimensions, if it knows the key.
    """
    heads = c.count("num_attention_heads", heads)
    kv_heads = c.optional_count("num_key_value_heads", kv_heads or heads) or heads
    if heads % kv_heads:
        raise c.fail("num_key_value_heads", f"is {kv_heads}, which does not divide the {heads} heads")
    head_dim = c.optional_count("head_dim", head_dim) or hidden_size // heads
    if head_dim % 2 or not head_dim:
        raise c.fail("head_dim", f"is {head_dim}: rotary embedding needs an even number")
    rope = read_rope(c, head_dim, context, theta, interleaved, partial=rotary)
    return GroupedQuery(
        heads, kv_heads, head_dim, rope, scale or head_dim**-0.5, qkv_bias, output_bias, qk_norm, clip, softcap, window
    )


def multi_head_latent(
    c: ConfigReader,
    context: int,
    *,
    heads: int,
    query_rank: int | None = 1536,
    nope_dim: int = 128,
    value_dim: int = 128,
    kv_rank: int = 512,
    theta: float = 10_000.0,
) -> MLA:
    """DeepSeek's multi-head latent attention; `heads` and the other numbers are the family's defaults.

    The YaRN temperature, squared, goes into the scale at every length.
    """
    heads = c.count("num_attention_heads", heads)
    c.ignore("num_key_value_heads", "head_dim", "qk_head_dim")  # derived; the latent has no key/value heads
    c.expect("rope_interleave", True)
    nope, rope_dim = c.count("qk_nope_head_dim", nope_dim), c.count("qk_rope_head_dim", 64)
    if rope_dim % 2:
        raise c.fail("qk_rope_head_dim", f"is {rope_dim}: rotary embedding needs an even number")
    rope = read_rope(c, rope_dim, context, theta, interleaved=True)
    scaling = c.raw("rope_parameters", None) or c.raw("rope_scaling", None) or {}
    mscale = yarn_mscale(rope.factor, float(scaling.get("mscale_all_dim", 0)))
    return MLA(
        heads=heads,
        query_rank=c.optional_count("q_lora_rank", query_rank),
        kv_rank=c.count("kv_lora_rank", kv_rank),
        nope_dim=nope,
        rope_dim=rope_dim,
        value_dim=c.count("v_head_dim", value_dim),
        rope=rope,
        scale=(nope + rope_dim) ** -0.5 * mscale**2,
        bias=c.flag("attention_bias", False),
    )


def layer_count(c: ConfigReader, default: int, key: str = "num_hidden_layers") -> int:
    """How many blocks the model has; ConfigError for more than any model has."""
    layers = c.count(key, default)
    if layers > MOST_LAYERS:
        raise c.fail(key, f"is {layers}: no model is that deep")
    return layers


def uniform_layers(
    c: ConfigReader, attention: Attention, ffn: FeedForward | Mixture, default: int, key: str = "num_hidden_layers"
) -> tuple[Layer, ...]:
    """The layers of a model whose blocks are all alike: as many as `key` says, else `default`."""
    if isinstance(ffn, Mixture):
        check_router(c, ffn)
    return (Layer(attention, ffn),) * layer_count(c, default, key)


def layer_overrides(c: ConfigReader, layers: Iterable[int]) -> ConfigReader | None:
    """What transformers 5 writes as `per_layer_config`: keys that these layers have of their own, all the same."""
    entries = c.raw("per_layer_config", None)
    if not entries:
        return None
    each = list(entries.values()) if isinstance(entries, dict) else [None]
    named = {int(key) for key in entries if str(key).isdecimal()} if isinstance(entries, dict) else set()
    if named != set(layers) or not isinstance(each[0], dict) or any(other != each[0] for other in each):
        raise c.fail("per_layer_config", "names other layers than those of one kind, or differs between them")
    return ConfigReader(each[0], c.family, "per_layer_config.")


def check_router(c: ConfigReader, mixture: Mixture) -> None:
    """ConfigError for counts that no router can satisfy: more experts chosen than there are, uneven groups."""
    router = mixture.router
    if router.experts > _MOST_EXPERTS:
        raise c.fail("num_experts", f"is {router.experts}: no model has so many")
    if router.top_k > router.experts:
        raise c.fail("num_experts_per_tok", f"is {router.top_k}, more than the {router.experts} experts")
    if router.experts % router.n_group or router.topk_group > router.n_group:
        raise c.fail("n_group", f"is {router.n_group} (keeping {router.topk_group}) for {router.experts} experts")
    if router.topk_group * (router.experts // router.n_group) < router.top_k:
        raise c.fail("topk_group", f"is {router.topk_group}: the groups kept hold fewer than {router.top_k} experts")


def sparse_steps(
    c: ConfigReader, attention: Attention, mixture: Mixture, dense: FeedForward, default_layers: int
) -> tuple[Layer, ...]:
    """Qwen's rule: every `decoder_sparse_step`-th block is a mixture, save those in `mlp_only_layers`."""
    check_router(c, mixture)
    layers = layer_count(c, default_layers)
    step, plain = c.count("decoder_sparse_step", 1), c.indices("mlp_only_layers", layers)
    return tuple(
        Layer(attention, mixture if index not in plain and (index + 1) % step == 0 else dense)
        for index in range(layers)
    )


def biased_sigmoid(
    c: ConfigReader,
    *,
    experts: Any = REQUIRED,
    top_k: Any = REQUIRED,
    scaling: float = 1.0,
    normalise: bool = True,
    experts_key: str = "n_routed_experts",
    scaling_key: str = "routed_scaling_factor",
) -> Router:
    """DeepSeek-V3's router, as its descendants spell it: sigmoid scores, a bias for picking, groups where there are."""
    return Router(
        c.count(experts_key, experts),
        c.count("num_experts_per_tok", top_k),
        Scoring.SIGMOID,
        norm_power=1.0 if c.optional_flag("norm_topk_prob", normalise) else None,
        norm_epsilon=1e-20,
        scaling=c.optional_number(scaling_key, scaling) or 1.0,
        n_group=c.optional_count("n_group") or 1,
        topk_group=c.optional_count("topk_group") or 1,
        group_score=GroupScore.TOP2_SUM,
        correction_bias=True,
    )


def language_part(
    config: Mapping[str, Any], family: str, neutral: Mapping[str, tuple[Any, ...]] = MappingProxyType({})
) -> ConfigReader:
    """The reader of the text model in a file that also describes a vision tower; a plain file is its own."""
    key, part = text_part(config)
    return ConfigReader(part, family, f"{key}." if key else "", neutral)


def text_part(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The key under which a file with other towers keeps its text model, and that model's configuration.

    "" and the file itself where there is none. What the outer level says of all weights holds for the text as well.
    """
    key = next((name for name in _TEXT_PARTS if isinstance(config.get(name), dict)), "")
    if not key:
        return key, config
    part = dict(config[key])
    for name in ("dtype", "torch_dtype", "quantization_config", "quantization"):
        if part.get(name) is None and name in config:
            part[name] = config[name]
    if "tie_word_embeddings" in config:  # the inner one is often but its class's default
        part["tie_word_embeddings"] = config["tie_word_embeddings"]
    return key, part


_TEXT_PARTS = ("text_config", "llm_config", "language_config")


def make_spec(
    c: ConfigReader,
    layers: Iterable[Layer],
    *,
    hidden_size: int,
    context: int,
    vocab: Any = REQUIRED,
    eps: float = 1e-6,
    eps_key: str | None = "rms_norm_eps",
    tied: bool = False,
    **more: Any,
) -> ModelSpec:
    """The spec, from the keys that hardly any family spells otherwise; then what nobody has read must have no effect.

    `hidden_size` and `context` are what was read; `vocab`, `eps` and `tied` are the family's defaults. Without
    `eps_key`, `eps` is a constant of the family. `more` are fields of ModelSpec.
    """
    layers = tuple(layers)
    _check_windows(c, layers, context)
    spec = ModelSpec(
        family=c.family,
        hidden_size=hidden_size,
        vocab_size=c.count("vocab_size", vocab),
        context_length=context,
        layers=layers,
        norm_eps=c.number(eps_key, eps) if eps_key else eps,
        tied_embeddings=c.flag("tie_word_embeddings", tied),
        stored_dtype=c.stored_dtype(),
        quantization=c.quantization(),
        **more,
    )
    c.finish()
    return replace(spec, unread_keys=tuple(c.unread))


def _check_windows(c: ConfigReader, layers: tuple[Layer, ...], context: int) -> None:
    """Refuse windows that the family does not have: transformers' cache goes by these keys in every family."""
    for key in ("sliding_window", "attention_chunk_size"):
        if c.unused(key) and (window := c.optional_count(key)) is not None and window < context:
            raise c.fail(key, f"is {window}, shorter than the context, which is not supported")
    if not c.unused("layer_types") or any(layer.recurrent for layer in layers):
        return
    usual = ["full_attention" if layer.attention.window is None else "sliding_attention" for layer in layers]
    types = c.choices("layer_types", len(layers), (*_FULL, "sliding_attention"), usual)
    if ["full_attention" if kind in _FULL else kind for kind in types] != usual:
        raise c.fail("layer_types", "names windows where this family has none, or none where it has them")


_FULL = ("full_attention", "attention")  # the second is how transformers 4 wrote it
