"""Qwen3-Next: gated delta nets with gated attention in every fourth layer, 512 experts (Qwen3NextForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import check_router, grouped_query, layer_count, make_spec
from moecli.model.spec import (
    NO_ATTENTION,
    Extra,
    FeedForward,
    Layer,
    Mixture,
    ModelSpec,
    Part,
    QkNorm,
    Recurrent,
    Router,
)
from moecli.model.unsupported import Unsupported

_KINDS = ("linear_attention", "full_attention")


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "qwen3_next")
    return hybrid(c, layers=48, experts=512, top_k=10, dense_width=5632, vocab=151_936)


def hybrid(c: ConfigReader, *, layers: int, experts: int, top_k: int, dense_width: int, vocab: int) -> ModelSpec:
    """Qwen's hybrid; the numbers are the family's defaults."""
    hidden_size, context = c.count("hidden_size", 2048), c.count("max_position_embeddings", 32768)
    bias = c.flag("attention_bias", False)
    attention = grouped_query(
        c, hidden_size, context, heads=16, kv_heads=2, head_dim=256, rotary=0.25, qk_norm=QkNorm.HEAD, qkv_bias=bias,
        output_bias=bias,
    )  # fmt: skip
    if c.flag("attn_output_gate", True):
        attention = replace(attention, gate_width=attention.query_width)
    c.ignore("mamba_ssm_dtype")
    activation = c.activation("hidden_act", "silu")
    mixture = Mixture(
        Router(
            c.count("num_experts", experts),
            c.count("num_experts_per_tok", top_k),
            norm_power=1.0 if c.flag("norm_topk_prob", True) else None,
        ),
        FeedForward(c.count("moe_intermediate_size", 512), activation),
        shared=FeedForward(c.count("shared_expert_intermediate_size", 512), activation),
        shared_gate=True,
    )
    check_router(c, mixture)
    dense = FeedForward(c.count("intermediate_size", dense_width), activation)
    count, every = layer_count(c, layers), c.count("full_attention_interval", 4)
    step, plain = c.count("decoder_sparse_step", 1), c.indices("mlp_only_layers", count)
    kinds = c.choices("layer_types", count, _KINDS, [_KINDS[(i + 1) % every == 0] for i in range(count)])
    delta = gated_delta_net(c, hidden_size)

    def layer(index: int) -> Layer:
        ffn = mixture if index not in plain and (index + 1) % step == 0 else dense
        return Layer(attention, ffn) if kinds[index] == "full_attention" else Layer(NO_ATTENTION, ffn, delta)

    return make_spec(
        c, [layer(index) for index in range(count)], hidden_size=hidden_size, context=context, vocab=vocab,
        unsupported=(Unsupported.LINEAR_ATTENTION, Unsupported.ATTENTION_GATE, Unsupported.ZERO_CENTRED_NORMS),
    )  # fmt: skip


def gated_delta_net(c: ConfigReader, hidden_size: int) -> Recurrent:
    """Gated DeltaNet (arXiv 2412.06464): q, k, v through a short convolution, a matrix of state per value head."""
    value_heads, key_dim = c.count("linear_num_value_heads", 32), c.count("linear_key_head_dim", 128)
    value_dim, kernel = c.count("linear_value_head_dim", 128), c.count("linear_conv_kernel_dim", 4)
    keys, values = c.count("linear_num_key_heads", 16) * key_dim, value_heads * value_dim
    mixed = 2 * keys + values
    shapes: dict[str, tuple[int, ...]] = {
        "qkvz": (mixed + values, hidden_size),
        "ba": (2 * value_heads, hidden_size),
        "conv": (mixed, kernel),
        "dt_bias": (value_heads,),
        "a_log": (value_heads,),
        "norm": (value_dim,),
        "o": (hidden_size, values),
    }
    tensors = tuple(Extra(f"linear_{role}", shape, Part.MIXER_OTHER) for role, shape in shapes.items())
    return Recurrent("gated delta net", tensors, state=values * key_dim + mixed * (kernel - 1))


FAMILY = Family(architectures=("Qwen3NextForCausalLM",), model_types=("qwen3_next",), read=read)
