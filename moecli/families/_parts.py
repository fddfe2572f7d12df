"""Pieces of a spec that several families read the same way."""

from __future__ import annotations

from moecli.families._config import ConfigReader
from moecli.families._rope import read_rope, yarn_mscale
from moecli.spec import Attention, FeedForward, GroupedQuery, Latent, Layer, Mixture, QkNorm

_MOST_LAYERS = 10_000


def grouped_query(
    c: ConfigReader,
    width: int,
    context: int,
    *,
    heads: int,
    kv_heads: int | None = None,
    theta: float = 10_000.0,
    qk_norm: QkNorm = QkNorm.NONE,
    qkv_bias: bool = False,
    output_bias: bool = False,
    clip: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
    scale: float | None = None,
) -> GroupedQuery:
    """Grouped-query attention from the usual keys; `heads` and `kv_heads` are the family's defaults."""
    heads = c.count("num_attention_heads", heads)
    kv_heads = c.optional_count("num_key_value_heads", kv_heads or heads) or heads
    if heads % kv_heads:
        raise c.fail("num_key_value_heads", f"is {kv_heads}, which does not divide the {heads} heads")
    head_dim = c.optional_count("head_dim") or width // heads
    if head_dim % 2 or not head_dim:
        raise c.fail("head_dim", f"is {head_dim}: rotary embedding needs an even number")
    rope = read_rope(c, head_dim, context, theta)
    return GroupedQuery(
        heads, kv_heads, head_dim, rope, scale or head_dim**-0.5, qkv_bias, output_bias, qk_norm, clip, softcap, window
    )


def latent(c: ConfigReader, context: int, *, heads: int, query_rank: int | None = 1536) -> Latent:
    """DeepSeek's multi-head latent attention. The YaRN temperature, squared, goes into the scale at every length."""
    heads = c.count("num_attention_heads", heads)
    c.ignore("num_key_value_heads", "head_dim", "qk_head_dim")  # derived; the latent has no key/value heads
    c.expect("rope_interleave", True)
    nope, rope_dim = c.count("qk_nope_head_dim", 128), c.count("qk_rope_head_dim", 64)
    if rope_dim % 2:
        raise c.fail("qk_rope_head_dim", f"is {rope_dim}: rotary embedding needs an even number")
    rope = read_rope(c, rope_dim, context, interleaved=True)
    scaling = c.raw("rope_parameters", None) or c.raw("rope_scaling", None) or {}
    mscale = yarn_mscale(rope.factor, float(scaling.get("mscale_all_dim", 0)))
    return Latent(
        heads=heads,
        query_rank=c.optional_count("q_lora_rank", query_rank),
        kv_rank=c.count("kv_lora_rank", 512),
        nope_dim=nope,
        rope_dim=rope_dim,
        value_dim=c.count("v_head_dim", 128),
        rope=rope,
        scale=(nope + rope_dim) ** -0.5 * mscale**2,
        bias=c.flag("attention_bias", False),
    )


def layer_count(c: ConfigReader, default: int, key: str = "num_hidden_layers") -> int:
    layers = c.count(key, default)
    if layers > _MOST_LAYERS:
        raise c.fail(key, f"is {layers}: no model is that deep")
    return layers


def uniform_layers(
    c: ConfigReader, attention: Attention, ffn: FeedForward | Mixture, default: int, key: str = "num_hidden_layers"
) -> tuple[Layer, ...]:
    """The same block over and over."""
    if isinstance(ffn, Mixture):
        check_router(c, ffn)
    return (Layer(attention, ffn),) * layer_count(c, default, key)


def check_router(c: ConfigReader, mixture: Mixture) -> None:
    """Refuse counts that no router can satisfy."""
    router = mixture.router
    if router.active > router.experts:
        raise c.fail("num_experts_per_tok", f"is {router.active}, more than the {router.experts} experts")
    if router.experts % router.groups or router.kept_groups > router.groups:
        raise c.fail("n_group", f"is {router.groups} (keeping {router.kept_groups}) for {router.experts} experts")
    if router.kept_groups * (router.experts // router.groups) < router.active:
        raise c.fail("topk_group", f"is {router.kept_groups}: the groups kept hold fewer than {router.active} experts")


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
