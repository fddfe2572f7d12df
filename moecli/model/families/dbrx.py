"""DBRX: sixteen experts, four active; nested config, one fused matrix for q, k and v, clipped (databricks/dbrx)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import BUFFERS, ExpertNames, Family, Layout, NamedSlice, gguf_layouts, names
from moecli.model.families._parts import make_spec, uniform_layers
from moecli.model.families._rope import read_rope
from moecli.model.spec import FeedForward, GroupedQuery, Mixture, ModelSpec, NormKind, Router

_MIRRORS = {
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers",
    "max_seq_len": "max_position_embeddings",
}
# Inside ffn_config.
_NEUTRAL = {"uniform_expert_assignment": (False,)}


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "dbrx")
    for key, mirror in _MIRRORS.items():
        c.alias(key, mirror)
    c.ignore("num_key_value_heads")  # a mirror too, of what is inside attn_config
    hidden_size, context = c.count("d_model", 2048), c.count("max_seq_len", 2048)
    return make_spec(
        c, uniform_layers(c, _attention(c, hidden_size, context), _mixture(c), default=24, key="n_layers"),
        hidden_size=hidden_size, context=context, vocab=32000,
        norm=NormKind.LAYER, eps=1e-5, eps_key=None,  # torch's default; no key says it
    )  # fmt: skip


def _attention(c: ConfigReader, hidden_size: int, context: int) -> GroupedQuery:
    part = c.nested("attn_config") or ConfigReader({}, "dbrx", "attn_config.")
    heads, kv_heads = c.count("n_heads", 16), part.count("kv_n_heads", 1)
    head_dim = hidden_size // heads
    if heads % kv_heads or head_dim % 2 or head_dim * heads != hidden_size:
        raise c.fail("n_heads", f"is {heads} over {kv_heads} key/value heads and a width of {hidden_size}")
    c.expect("head_dim", head_dim, None)
    theta = part.optional_number("rope_theta") or 10_000.0
    rope = read_rope(c, head_dim, context, theta)
    clip = part.optional_number("clip_qkv")
    part.finish()
    return GroupedQuery(heads, kv_heads, head_dim, rope, head_dim**-0.5, clip=clip)


def _mixture(c: ConfigReader) -> Mixture:
    part = c.nested("ffn_config", _NEUTRAL) or ConfigReader({}, "dbrx", "ffn_config.")
    act = part.nested("ffn_act_fn") or ConfigReader({}, "dbrx", "ffn_config.ffn_act_fn.")
    expert = FeedForward(part.count("ffn_hidden_size", 3584), act.activation("name", "silu"))
    act.finish(irrelevant=(), strict=True)
    router = Router(
        part.count("moe_num_experts", 4),
        part.count("moe_top_k", 1),
        norm_power=part.optional_number("moe_normalize_expert_weights", 1.0),
    )
    part.ignore("hidden_size")  # a mirror
    part.finish()
    return Mixture(router, expert)


_BLOCK = "transformer.blocks.{layer}."
_EXPERTS = _BLOCK + "ffn.experts.mlp."
FAMILY = Family(
    architectures=("DbrxForCausalLM",),
    model_types=("dbrx",),
    read=read,
    layouts=(
        Layout(
            names("transformer.", embedding="wte", final_norm="norm_f")
            | names(lm_head="lm_head")
            | names(
                _BLOCK + "norm_attn_norm.", attn_norm="norm_1", ffn_norm="norm_2", qkv="attn.Wqkv", o="attn.out_proj"
            )
            | names(_BLOCK, router="ffn.router.layer"),
            ExpertNames(
                NamedSlice(_EXPERTS + "w1", stacked=True),
                NamedSlice(_EXPERTS + "v1", stacked=True),
                NamedSlice(_EXPERTS + "w2", stacked=True, transposed=True),
            ),
            BUFFERS,
        ),
        *gguf_layouts(qkv="attn_qkv", ffn_norm="attn_output_norm"),
    ),
)
