"""MiniMax-Text-01 and M1: seven lightning-attention layers to one of softmax attention (arXiv 2501.08313)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import (
    BODY,
    BUFFERS,
    GROUPED_QUERY,
    Family,
    Layout,
    fused,
    names,
    per_expert,
)
from moecli.model.families._parts import check_router, grouped_query, layer_count, make_spec
from moecli.model.families._recurrent import LIGHTNING_TURNS, lightning, lightning_names
from moecli.model.spec import NO_ATTENTION, Carry, FeedForward, Layer, Mixture, ModelSpec, Router

_KINDS = ("linear_attention", "full_attention")  # of the vendor's 0 and 1


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "minimax")
    c.alias("num_local_experts", "num_experts")
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 131_072)
    head_dim = c.optional_count("head_dim") or hidden_size // c.count("num_attention_heads", 32)
    attention = grouped_query(
        c, hidden_size, context, heads=32, kv_heads=8, theta=1e6, window=c.optional_count("sliding_window"),
        rotary=c.count("rotary_dim", head_dim) / head_dim,
    )  # fmt: skip
    c.expect("hidden_act", "silu", "swish")  # of what lightning attention projects, too
    c.expect("shared_intermediate_size", 0, None)
    c.expect("postnorm", True)
    c.count("block_size", 256)  # tokens that are computed at once
    c.ignore("shared_moe_mode")
    router = Router(c.count("num_local_experts", 8), c.count("num_experts_per_tok", 2), norm_power=1.0)
    mixture = Mixture(router, FeedForward(c.count("intermediate_size", 14336)))
    check_router(c, mixture)
    carries = {name: _carry(c, *keys) for name, keys in _CARRIES.items()}
    count = layer_count(c, 32)

    def layer(index: int, kind: str) -> Layer:
        if kind == "full_attention":
            return Layer(attention, mixture, carries=(carries[kind], carries["mlp"]))
        mixer = lightning(hidden_size, attention.heads, attention.head_dim, index, count)
        return Layer(NO_ATTENTION, mixture, mixer, carries=(carries[kind], carries["mlp"]))

    if c.raw("attn_type_list", None) and attention.heads & (attention.heads - 1):
        raise c.fail(
            "num_attention_heads", f"is {attention.heads}, no power of two: the vendor's decays are others then"
        )
    layers = [layer(*each) for each in enumerate(_kinds(c, count))]
    return make_spec(c, layers, hidden_size=hidden_size, context=context, vocab=32000, eps=1e-5)


def _kinds(c: ConfigReader, count: int) -> list[str]:
    """What mixes the tokens of each layer, by name or by the vendor's numbers."""
    usual = [_KINDS[(index + 1) % 2] for index in range(count)]
    if numbers := c.choices("attn_type_list", count, (0, 1), ()):
        usual = [_KINDS[number] for number in numbers]
        c.expect("layer_types", usual, None, default=usual)
    return c.choices("layer_types", count, _KINDS, usual)


# What scales the two sides of each residual, by the half: as transformers has it, and as the vendor does.
_CARRIES = {
    "full_attention": ("full_attn_{}_factor", "layernorm_full_attention_{}"),
    "linear_attention": ("linear_attn_{}_factor", "layernorm_linear_attention_{}"),
    "mlp": ("mlp_{}_factor", "layernorm_mlp_{}"),
}


def _carry(c: ConfigReader, key: str, other: str) -> Carry:
    for side in ("alpha", "beta"):
        c.alias(key.format(side), other.format(side))
    return Carry(c.number(key.format("alpha"), 1), c.number(key.format("beta"), 1))


_SHARED = BODY | GROUPED_QUERY | lightning_names()
_IGNORED = (*BUFFERS, r".*\.self_attn\.(slope_rate|query_decay|key_decay|diagonal_decay)")  # by the layer's number
FAMILY = Family(
    architectures=("MiniMaxForCausalLM", "MiniMaxM1ForCausalLM", "MiniMaxText01ForCausalLM"),
    model_types=("minimax", "minimax_m1", "minimax_text_01"),
    read=read,
    layouts=(
        Layout(
            _SHARED | names("model.layers.{layer}.block_sparse_moe.", router="gate"),
            per_expert("block_sparse_moe.experts", "w1", "w3", "w2"), _IGNORED, interleaved=LIGHTNING_TURNS,
        ),
        Layout(
            _SHARED | names("model.layers.{layer}.mlp.", router="gate"), fused("mlp.experts"), _IGNORED,
            interleaved=LIGHTNING_TURNS,
        ),
    ),
)  # fmt: skip
